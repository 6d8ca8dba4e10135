from __future__ import annotations

from pathlib import Path

import pytest

from outpace.errors import UsageError
from outpace.weights.gguf import GGUFFile
from outpace.weights.model_file import FolderFiles, read_model
from tests.unit.weights.tiny import CONFIG, tensors_of, write_folder, write_gguf


def gguf_path(path: Path) -> Path:
    file = read_model(path)
    assert isinstance(file, GGUFFile)
    return file.path


def test_a_folder_is_read_as_it_is(tmp_path: Path) -> None:
    files = read_model(write_folder(tmp_path / "a", CONFIG | {"unheard": [1]}))
    assert isinstance(files, FolderFiles)
    assert files.config == CONFIG | {"unheard": [1]}
    assert files.generation is None
    assert files.tensors().keys() == tensors_of(CONFIG).keys()
    (tmp_path / "a" / "generation_config.json").write_text('{"eos_token_id": 3}')
    again = read_model(tmp_path / "a")
    assert isinstance(again, FolderFiles)
    assert again.generation == {"eos_token_id": 3}


def test_a_folder_with_one_gguf_file_is_that_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf")
    assert gguf_path(tmp_path) == path
    write_gguf(tmp_path / "b.gguf")
    with pytest.raises(UsageError, match=r"holds 2 GGUF files: name one of a\.gguf, b\.gguf"):
        read_model(tmp_path)


def test_a_gguf_file_is_known_by_its_content_too(tmp_path: Path) -> None:
    blob = write_gguf(tmp_path / "a.gguf").rename(tmp_path / "sha256-1234")
    assert gguf_path(blob) == blob


def test_a_path_that_is_no_model_is_an_error_with_a_cure(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        read_model(tmp_path / "missing")
    with pytest.raises(UsageError, match=r"holds neither a config\.json nor a GGUF file"):
        read_model(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UsageError, match="is not a GGUF file"):
        read_model(tmp_path / "notes.txt")
    folder = write_folder(tmp_path / "a", CONFIG)
    with pytest.raises(UsageError, match="is one file of a Hugging Face folder: give the folder"):
        read_model(folder / "model.safetensors")
