from __future__ import annotations

import hashlib
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from outpace.errors import DownloadError, UsageError
from outpace.weights import resolve
from outpace.weights.hub import PREFERRED, choose, fetch_gguf, variants

FILES = {
    "README.md": b"words",
    "mmproj-F16.gguf": b"eyes",
    "tiny-IQ3_XXS.gguf": b"three bits",
    "tiny-Q4_K_M.gguf": b"four bits",
    "tiny-Q8_0-00001-of-00002.gguf": b"eight bits, first",
    "tiny-Q8_0-00002-of-00002.gguf": b"eight bits, second",
    "BF16/tiny-BF16.gguf": b"sixteen bits",
}


class Hub:
    """A stand-in for the hub's client: repositories in a folder, fetched into a cache by copying."""

    def __init__(self, root: Path, files: dict[str, bytes]) -> None:
        self.files, self.cache = dict(files), root / "hub"
        self.online, self.fetched, self.lies = True, list[str](), False
        self.module = types.ModuleType("huggingface_hub")
        vars(self.module).update(
            HfApi=lambda: self, hf_hub_download=self.hf_hub_download, snapshot_download=self.snapshot_download
        )

    def model_info(self, repo_id: str, *, files_metadata: bool) -> Any:
        if not self.online:
            raise ConnectionError("no route to host")
        assert files_metadata
        siblings = [
            types.SimpleNamespace(rfilename=name, size=len(content), lfs=self._lfs(content))
            for name, content in self.files.items()
        ]
        return types.SimpleNamespace(sha="abc", siblings=siblings)

    def _lfs(self, content: bytes) -> Any:
        return types.SimpleNamespace(sha256=hashlib.sha256(b"other" if self.lies else content).hexdigest())

    def hf_hub_download(self, repo_id: str, filename: str, revision: str | None = None) -> str:
        path = self.cache / filename
        if not path.exists():
            if not self.online:
                raise ConnectionError("no route to host")
            assert revision == "abc"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.files[filename])
            self.fetched.append(filename)
        return str(path)

    def snapshot_download(self, repo_id: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        if not self.online and not self.cache.exists():
            raise ConnectionError("no route to host")
        self.cache.mkdir(exist_ok=True)
        return str(self.cache)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(tmp_path, FILES)
    monkeypatch.setitem(sys.modules, "huggingface_hub", found.module)
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path / "cache"))
    return found


@pytest.mark.parametrize(
    ("model", "files"),
    [
        ("org/repo", ["tiny-Q4_K_M.gguf"]),
        ("org/repo:q4_k_m", ["tiny-Q4_K_M.gguf"]),
        ("org/repo:IQ3_XXS", ["tiny-IQ3_XXS.gguf"]),
        ("org/repo:BF16", ["BF16/tiny-BF16.gguf"]),
        ("org/repo:tiny-BF16.gguf", ["BF16/tiny-BF16.gguf"]),
        ("org/repo:BF16/tiny-BF16.gguf", ["BF16/tiny-BF16.gguf"]),
        ("org/repo:Q8_0", ["tiny-Q8_0-00001-of-00002.gguf", "tiny-Q8_0-00002-of-00002.gguf"]),
        ("org/repo:tiny-Q8_0-00002-of-00002.gguf", ["tiny-Q8_0-00001-of-00002.gguf", "tiny-Q8_0-00002-of-00002.gguf"]),
    ],
)
def test_a_gguf_file_is_fetched_by_quantisation_name_or_default(hub: Hub, model: str, files: list[str]) -> None:
    assert resolve(model) == hub.cache / files[0]
    assert hub.fetched == files
    assert resolve(model) == hub.cache / files[0]
    assert hub.fetched == files, "what is there is not fetched again"


def test_a_repository_with_a_folder_is_fetched_as_one(hub: Hub) -> None:
    hub.cache.mkdir()
    (hub.cache / "model.safetensors").write_bytes(b"")
    assert resolve("org/repo") == hub.cache
    assert hub.fetched == []


@pytest.mark.parametrize("wish", ["Q9_9", "README.md", "mmproj-F16.gguf", "nothing.gguf"])
def test_a_wish_that_fits_no_model_is_told_what_there_is(hub: Hub, wish: str) -> None:
    with pytest.raises(UsageError, match=r"no file fits .*; there are BF16, IQ3_XXS, Q4_K_M, Q8_0"):
        resolve(f"org/repo:{wish}")


def test_a_repository_without_models_says_so(hub: Hub) -> None:
    hub.files = {"README.md": b""}
    with pytest.raises(UsageError, match=r"org/repo: holds no GGUF files and no \*\.safetensors"):
        resolve("org/repo")
    with pytest.raises(UsageError, match="org/repo: holds no GGUF files: "):
        resolve("org/repo:Q4_0")


def test_without_a_wish_the_first_of_the_preferred_is_taken_and_one_alone_whatever_it_is() -> None:
    names = [f"m.{name.lower()}.gguf" for name in reversed(PREFERRED)]
    for left in range(1, len(names) + 1):
        assert choose("r", names[:left], None).quantisation == PREFERRED[len(PREFERRED) - left]
    assert choose("r", ["odd-IQ2_XS.gguf"], None).names == ("odd-IQ2_XS.gguf",)
    with pytest.raises(UsageError, match=r"holds 2 GGUF models: name one, r:NAME, of a\.gguf, IQ2_XS"):
        choose("r", ["a.gguf", "b-IQ2_XS.gguf"], None)
    with pytest.raises(UsageError, match="2 files fit 'Q4_0': give the file's name"):
        choose("r", ["a-Q4_0.gguf", "b-Q4_0.gguf"], "Q4_0")


@pytest.mark.parametrize(
    ("name", "quantisation"),
    [
        ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", "Q4_K_M"),
        ("qwen2.5-0.5b-instruct-q4_0.gguf", "Q4_0"),
        ("SmolLM2-135M.Q4_1.gguf", "Q4_1"),
        ("m-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("m-fp16.gguf", "F16"),
        ("m-f16.gguf", "F16"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("IQ4_XS/m-IQ4_XS-00001-of-00001.gguf", "IQ4_XS"),
        ("Q4.gguf", "Q4"),
        ("ggml-model.gguf", ""),
    ],
)
def test_the_quantisation_is_read_from_the_name(name: str, quantisation: str) -> None:
    assert [found.quantisation for found in variants([name])] == [quantisation]


def test_progress_counts_bytes_of_all_parts(hub: Hub) -> None:
    calls: list[tuple[int, int]] = []
    resolve("org/repo:Q8_0", lambda done, total: calls.append((done, total)))
    first, second = (len(FILES[f"tiny-Q8_0-0000{i}-of-00002.gguf"]) for i in (1, 2))
    assert calls == [(0, first + second), (first, first + second), (first + second, first + second)]


def test_a_file_with_another_hash_is_refused_and_taken_away(hub: Hub, tmp_path: Path) -> None:
    hub.lies = True
    with pytest.raises(DownloadError, match=r"tiny-Q4_K_M\.gguf: .*another SHA-256"):
        resolve("org/repo:Q4_K_M")
    assert not (hub.cache / "tiny-Q4_K_M.gguf").exists()
    hub.lies = False
    resolve("org/repo:Q4_K_M")
    assert hub.fetched == ["tiny-Q4_K_M.gguf"] * 2


def test_a_hash_is_compared_once_and_again_when_the_file_has_changed(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = resolve("org/repo:Q4_K_M")
    with monkeypatch.context() as patch:
        patch.setattr("outpace.weights.hub.hashlib", None)
        assert resolve("org/repo:Q4_K_M") == path
    path.write_bytes(b"damaged bits")
    with pytest.raises(DownloadError, match="another SHA-256"):
        resolve("org/repo:Q4_K_M")


def test_without_a_connection_what_was_fetched_is_found(hub: Hub, tmp_path: Path) -> None:
    path = resolve("org/repo:Q8_0")
    hub.online = False
    assert resolve("org/repo:Q8_0") == resolve("org/repo") == path
    with pytest.raises(UsageError, match="there are Q8_0"):
        resolve("org/repo:Q4_K_M")


def test_without_a_connection_and_a_cache_the_connection_is_named(hub: Hub, tmp_path: Path) -> None:
    hub.online = False
    with pytest.raises(DownloadError, match=r"org/repo: no such path, and fetching it from the hub failed \(no route"):
        fetch_gguf("org/repo", None, tmp_path)
