from __future__ import annotations

import hashlib
import os
import stat
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from outpace.errors import DownloadError, UsageError
from outpace.weights import DEFAULT, cache_folder, catalog, known_models, open_checkpoint, pull, resolve
from outpace.weights.catalog import KnownModel
from outpace.weights.pull import Source

CONTENT = bytes(range(256)) * 40_000  # 10 MB
MEMBER = "package/model.gguf"
Pip = Callable[[str], tuple[str, str]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the cache into a folder of the test, and a small model into the catalog."""
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path / "cache"))
    source = Source("package==1.0", 10_000_000, MEMBER, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(catalog, "KNOWN", {"tiny": KnownModel("tiny", "a test's", "Apache-2.0", source)})
    return tmp_path / "cache" / "models"


@pytest.fixture
def pip(tmp_path: Path) -> Pip:
    """Return a maker of stand-ins for pip: a script that runs `body` with `dest` set to the folder to fill."""
    (tmp_path / "content").write_bytes(CONTENT)

    def make(body: str) -> tuple[str, str]:
        script = tmp_path / "pip.py"
        setup = f"""
import os, pathlib, sys, time, zipfile
assert sys.argv[1] == "download" and "--no-deps" in sys.argv and sys.argv[-1] == "package==1.0", sys.argv
dest = pathlib.Path(sys.argv[sys.argv.index("--dest") + 1])
assert os.environ["TMPDIR"] == str(dest)
content = pathlib.Path({str(tmp_path / "content")!r}).read_bytes()
def wheel(content, name={MEMBER!r}):
    with zipfile.ZipFile(dest / "package-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(name, content)
"""
        script.write_text(setup + body)
        return sys.executable, str(script)

    return make


def wait_for(path: Path) -> str:
    """Return a script's lines that wait until a file is there, so that no test depends on the machine's load."""
    return f"for _ in range(3000): os.path.exists({str(path)!r}) or time.sleep(0.01)"


def test_a_known_model_is_pulled_once_and_whole(cache: Path, pip: Pip) -> None:
    [model] = known_models()
    assert not model.present
    assert resolve("tiny", pip=pip("wheel(content)")) == cache / "model.gguf" == model.path
    assert (cache / "model.gguf").read_bytes() == CONTENT
    assert model.present
    assert os.listdir(cache) == ["model.gguf"]
    assert pull("tiny", pip=pip("sys.exit(1)")) == model.path


def test_progress_follows_the_growing_file_up_to_its_total(pip: Pip, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        calls.append((done, total))
        if done == 5_000_000:
            (tmp_path / "seen").touch()

    body = f"(dest / 'half').write_bytes(content[:5_000_000])\n{wait_for(tmp_path / 'seen')}\nwheel(content)"
    pull("tiny", progress, pip(body))
    assert (5_000_000, 10_000_000) in calls
    assert calls[-1] == (10_000_000, 10_000_000)
    assert calls == sorted(calls)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("print('ERROR: no matching distribution'); print('see you'); sys.exit(1)", r"\(ERROR: no matching dist"),
        ("sys.exit(3)", "exit code 3"),
        ("(dest / 'half').write_bytes(content[:99]); os.kill(os.getpid(), 9)", "exit code -9"),
        ("pass", "pip could not fetch it"),
        ("(dest / 'a.whl').write_bytes(content)", "cannot be read: File is not a zip file"),
        ("wheel(content, 'another')", "cannot be read: .*no item named 'package/model.gguf'"),
        ("wheel(content[:-1])", "has 10239999 bytes, must have 10240000"),
        ("wheel(content + b'x' * 9_000_000)", "has 19240000 bytes, must have 10240000"),
        ("wheel(b'x' + content[1:])", "has SHA-256 .*, must have "),
        (
            "wheel(content); p = next(dest.glob('*.whl')); b = bytearray(p.read_bytes()); b[99] ^= 1; p.write_bytes(b)",
            "cannot be read: Bad CRC",
        ),
    ],
)
def test_a_failed_or_corrupt_fetch_leaves_nothing_and_says_what_to_do(
    cache: Path, pip: Pip, body: str, message: str
) -> None:
    with pytest.raises(DownloadError, match=message) as caught:
        pull("tiny", pip=pip(body))
    assert "try again" in str(caught.value)
    assert os.listdir(cache) == []


def test_an_interrupted_pull_leaves_nothing_and_ends_pip(cache: Path, pip: Pip, tmp_path: Path) -> None:
    pid, lived = tmp_path / "pid", tmp_path / "lived"

    def interrupt(done: int, total: int) -> None:
        if pid.exists():
            raise KeyboardInterrupt

    new = str(tmp_path / "new")
    body = f"pathlib.Path({new!r}).write_text(str(os.getpid()))\nos.replace({new!r}, {str(pid)!r})"
    with pytest.raises(KeyboardInterrupt):
        pull("tiny", interrupt, pip(f"{body}\n{wait_for(tmp_path / 'never')}\npathlib.Path({str(lived)!r}).touch()"))
    assert not lived.exists()
    assert os.listdir(cache) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_two_pulls_at_once_do_each_other_no_harm(cache: Path, pip: Pip) -> None:
    inner: list[Path] = []

    def another(done: int, total: int) -> None:
        if not inner:
            inner.append(pull("tiny", pip=pip("wheel(content)")))

    pull("tiny", another, pip(wait_for(cache / "model.gguf") + "\nwheel(content)"))
    assert inner == [cache / "model.gguf"]
    assert (cache / "model.gguf").read_bytes() == CONTENT
    assert os.listdir(cache) == ["model.gguf"]


def test_a_model_of_the_wrong_size_is_fetched_again(cache: Path, pip: Pip) -> None:
    cache.mkdir(parents=True)
    (cache / "model.gguf").write_bytes(b"half")
    assert not known_models()[0].present
    pull("tiny", pip=pip("wheel(content)"))
    assert (cache / "model.gguf").read_bytes() == CONTENT


def test_what_a_killed_pull_left_is_swept_away_after_a_day(cache: Path, pip: Pip) -> None:
    for name, age in {".pull-old": 25 * 3600, ".pull-new": 60}.items():
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (time.time() - age,) * 2)
    pull("tiny", pip=pip("wheel(content)"))
    assert sorted(os.listdir(cache)) == [".pull-new", "model.gguf"]


def test_a_cache_that_cannot_be_written_is_a_download_error(tmp_path: Path, pip: Pip) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DownloadError, match=r"cannot be stored in .*OUTPACE_CACHE"):
        pull("tiny", pip=pip("wheel(content)"))


def test_a_full_disk_is_not_blamed_on_the_connection(cache: Path, pip: Pip) -> None:
    """pip tells it in its log, and ends with 1 as for everything else."""
    log = "print('ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device')"
    with pytest.raises(DownloadError) as error:
        pull("tiny", pip=pip(f"{log}; sys.exit(1)"))
    message = str(error.value)
    assert f"cannot be stored in {cache} (No space left on device): it needs 30 MB for a moment; make room" in message
    assert "connection" not in message
    assert os.listdir(cache) == []


def test_a_full_disk_is_not_blamed_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*given: object, **named: object) -> str:
        raise OSError(28, "No space left on device", "/hub")

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    with pytest.raises(DownloadError, match=r"cannot be stored in /hub \(No space left on device\): make room"):
        resolve("owner/name")


def test_a_pulled_file_may_be_read_like_any_other(cache: Path, pip: Pip) -> None:
    mode = stat.S_IMODE(pull("tiny", pip=pip("wheel(content)")).stat().st_mode)
    (cache / "plain").write_bytes(b"")
    assert mode == stat.S_IMODE((cache / "plain").stat().st_mode)


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
        return str(tmp_path)

    hub(monkeypatch, download)
    assert resolve("owner/my-model.v1") == tmp_path
    [(repo, patterns)] = asked
    assert repo == "owner/my-model.v1"
    assert {"config.json", "*.safetensors", "tokenizer.json", "model.safetensors.index.json"} <= set(patterns)
    assert not any("bin" in pattern or pattern in ("*", "*.json") for pattern in patterns)


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


@pytest.mark.slow
def test_the_default_model_is_really_fetched_and_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path))
    calls: list[int] = []
    checkpoint = open_checkpoint(resolve(DEFAULT, lambda done, total: calls.append(done)))
    assert checkpoint.config["num_hidden_layers"] == 30
    assert checkpoint.eos_ids == {2}
    assert calls[-1] == known_models()[0].source.package_bytes
