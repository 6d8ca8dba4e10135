"""Files that the user names: checked before the work, then written whole or not at all.

A path is the user's, not ours to replace. Links are followed. What exists and is no regular file (a pipe, a device,
`/dev/fd/63` of a shell's `>(...)`) is opened and written into.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import sys
from pathlib import Path
from types import TracebackType

from outpace.errors import UsageError

_MOST_LINKS = 40  # as Linux follows


class OutputFile:
    """One file to write, as a context manager: `OutputFile(path)` checks and opens, `write` writes.

    A regular file is replaced in one step by a temporary file beside it and keeps its permissions, so that an earlier
    file stays whole until the new one is. Only where that would lose something (other hard links, the owner) or
    cannot be done (the folder takes no new files) it is written in place.

    Raises UsageError, when made, for what cannot be written; OSError, from `write`, where the device is full.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        self._descriptor: int | None = None
        try:
            self._open()
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            self.close()
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise UsageError(
                f"{self.name!r} cannot be written ({reason}): name a file in a folder that exists and takes new files"
            ) from error

    def _open(self) -> None:
        own = _own_descriptor(self.name)
        if own is not None:
            self._descriptor = os.dup(own)
            os.write(self._descriptor, b"")  # refused where it is open for reading only
            return
        if self.name.endswith(os.sep):
            raise IsADirectoryError(errno.EISDIR, "it names a folder")
        self.target = Path(os.path.realpath(self.name))
        try:
            status = self.target.stat()
        except FileNotFoundError:
            _remove(_temporary(self.target.parent, 0o600))
            return
        if stat.S_ISREG(status.st_mode):
            os.close(os.open(self.target, os.O_WRONLY))  # refused where it is write-protected
        else:
            self._descriptor = os.open(self.target, os.O_WRONLY | os.O_NOCTTY)

    @property
    def is_regular(self) -> bool:
        """Whether it is, or will be, a regular file, with a name that other files can stand beside."""
        return self._descriptor is None

    def same_file(self, other: OutputFile) -> bool:
        """Whether both would replace the same regular file."""
        return self.is_regular and other.is_regular and self.target == other.target

    def write(self, content: str | bytes) -> None:
        """Write all of the content: text as UTF-8 (half surrogates become escapes)."""
        data = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
        try:
            self._write(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.name) from error

    def _write(self, data: bytes) -> None:
        if self._descriptor is not None:
            _write_all(self._descriptor, data)
        elif not self._replace(data):
            descriptor = os.open(self.target, os.O_WRONLY | os.O_TRUNC)
            try:
                _write_all(descriptor, data)
            finally:
                os.close(descriptor)

    def _replace(self, data: bytes) -> bool:
        """Put a new file in the target's place; False where only writing in place keeps what the target is."""
        try:
            status = self.target.stat()
        except FileNotFoundError:
            status = None
        if status is not None and status.st_nlink > 1:
            return False
        try:
            descriptor, temporary = _temporary(self.target.parent, 0o666)
        except OSError:
            if status is None:
                raise
            return False
        try:
            if status is not None and not _adopt(descriptor, status):
                return False
            _write_all(descriptor, data)
            os.fsync(descriptor)
            try:
                os.replace(temporary, self.target)
            except OSError:  # a mount point of its own, as containers make them
                if status is None:
                    raise
                return False
            return True
        finally:
            _remove((descriptor, temporary))

    def close(self) -> None:
        """Close what was opened; without `write`, a regular file stays as it was."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def save(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file in one go, as `OutputFile` does."""
    with OutputFile(path) as output:
        output.write(content)


def _own_descriptor(name: str) -> int | None:
    """Return the descriptor of this process that a path stands for (/dev/stdout, /dev/fd/63), links followed."""
    for _ in range(_MOST_LINKS):
        folder, last = os.path.split(os.path.abspath(name))
        folder = os.path.realpath(folder)
        if folder == f"/proc/{os.getpid()}/fd" and last.isdigit():
            return _standard_output() if last == "1" else int(last)
        name = os.path.join(folder, last)
        if not os.path.islink(name):
            return None
        name = os.path.join(folder, os.readlink(name))
    return None


def _standard_output() -> int:
    """Return where standard output goes: the command line moves it away from descriptor 1."""
    try:
        sys.stdout.flush()
        return sys.stdout.fileno()
    except (OSError, ValueError, AttributeError):  # captured, or closed
        return 1


def _temporary(folder: Path, mode: int) -> tuple[int, Path]:
    """Make a file of its own, with a short name, in `folder`."""
    while True:
        path = folder / f".outpace-{secrets.token_hex(6)}"
        with contextlib.suppress(FileExistsError):
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), path


def _remove(temporary: tuple[int, Path]) -> None:
    descriptor, path = temporary
    os.close(descriptor)
    path.unlink(missing_ok=True)


def _adopt(descriptor: int, status: os.stat_result) -> bool:
    """Give a new file the owner and the permissions of another; False where the owner cannot be kept."""
    own = os.fstat(descriptor)
    if (own.st_uid, own.st_gid) != (status.st_uid, status.st_gid):
        try:
            os.fchown(descriptor, status.st_uid, status.st_gid)
        except OSError:
            return False
    os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
    return True


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
