from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import outpace
from outpace.errors import UsageError
from outpace.models.checkpoint import open_checkpoint
from outpace.models.mixture import FORMATS
from outpace.ops.formats import dequantise
from outpace.types import RawTensor
from outpace.weights.gguf import read_gguf
from outpace.weights.gguf_writer import Planned, write_gguf
from tests.folder import make_folder

pytest.importorskip("outpace.ops.native._native")

SIZES = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("model"), **SIZES)


def logits(lm: outpace.LanguageModel) -> NDArray[np.float32]:
    ops, tokens = lm.runner.ops, list(range(2, 40))
    kv = ops.kv_alloc(lm.runner.model.spec("f32"), 3)
    segment = outpace.types.Segment((0, 1, 2), 0, tokens, num_scored=len(tokens))
    return ops.numpy(lm.runner.model.forward(ops.plan([segment], 32), kv)[0])


@pytest.mark.parametrize("format", FORMATS)
def test_a_model_rounded_while_loading_is_the_file_that_quantize_writes(
    folder: Path, tmp_path: Path, format: str
) -> None:
    written = outpace.quantize(folder, tmp_path / "a.gguf", format, threads=2)  # type: ignore[arg-type]
    assert written.num_bytes == (tmp_path / "a.gguf").stat().st_size
    assert FORMATS[format] in written.formats
    file = outpace.load(tmp_path / "a.gguf", threads=2)
    loaded = outpace.load(folder, quantize=format, threads=2)  # type: ignore[arg-type]
    assert logits(file).tobytes() == logits(loaded).tobytes()
    assert loaded.eos_ids == file.eos_ids
    text = "the dog, 12 Grüße"
    assert file.tokenizer.encode(text) == loaded.tokenizer.encode(text)


def test_eight_bits_change_little_and_two_bits_more(folder: Path) -> None:
    plain = logits(outpace.load(folder, threads=2))
    error = {
        format: float(np.std(logits(outpace.load(folder, quantize=format, threads=2)) - plain) / np.std(plain))  # type: ignore[arg-type]
        for format in ("q8_0", "q5_k", "q4_k", "q2_k")
    }
    assert error["q8_0"] < 0.1  # int8 activations among it
    assert error["q8_0"] < error["q5_k"] < error["q2_k"]


def test_a_gguf_file_of_floats_is_rounded_as_its_folder(folder: Path, tmp_path: Path) -> None:
    outpace.quantize(folder, tmp_path / "a.gguf", "q8_0", threads=2)
    tensors = [
        RawTensor(t.name, dequantise(t).reshape(t.shape).view(np.uint8), "F32", t.shape)
        for t in read_gguf(tmp_path / "a.gguf").tensors.values()
    ]
    planned = [Planned(t.name, t.format, t.shape) for t in tensors]
    write_gguf(tmp_path / "f.gguf", read_gguf(tmp_path / "a.gguf").metadata, planned, tensors.__getitem__)
    outpace.quantize(tmp_path / "f.gguf", tmp_path / "b.gguf", "q8_0", threads=2)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_model_that_is_quantised_already_is_refused_and_nothing_is_written(folder: Path, tmp_path: Path) -> None:
    outpace.quantize(folder, tmp_path / "a.gguf", "q8_0", threads=2)
    with pytest.raises(UsageError, match="has no F32, F16 or BF16 matrices that could be rounded"):
        outpace.quantize(tmp_path / "a.gguf", tmp_path / "b.gguf", "q4_0", threads=2)
    assert not (tmp_path / "b.gguf").exists()
    with pytest.raises(UsageError, match="has no F32, F16 or BF16 matrices that could be rounded"):
        outpace.load(tmp_path / "a.gguf", quantize="q4_0", threads=2)


def test_a_quantised_model_still_says_which_adapter_was_merged_into_it(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "merged", outpace_tuned_by="0123abcd", **SIZES)
    outpace.quantize(folder, tmp_path / "q8_0.gguf", "q8_0", threads=1)
    assert open_checkpoint(folder).tuned_by == open_checkpoint(tmp_path / "q8_0.gguf").tuned_by == "0123abcd"


def test_the_model_itself_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    outpace.quantize(folder, tmp_path / "a.gguf", "q8_0", threads=2)
    before = (tmp_path / "a.gguf").read_bytes()
    with pytest.raises(UsageError, match="is the model itself"):
        outpace.quantize(tmp_path / "a.gguf", tmp_path / "a.gguf", "q4_0")
    assert (tmp_path / "a.gguf").read_bytes() == before


def test_an_unknown_format_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown format 'q9'"):
        outpace.quantize(tmp_path / "gone", tmp_path / "a.gguf", "q9")  # type: ignore[arg-type]


def test_large_tensors_are_rounded_in_chunks(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outpace.quantize(folder, tmp_path / "a.gguf", "q4_1", threads=2)
    monkeypatch.setattr("outpace.api.quantise._CHUNK", 1000)
    outpace.quantize(folder, tmp_path / "b.gguf", "q4_1", threads=2)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
