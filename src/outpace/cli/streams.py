"""The standard streams: what a command produces, and nothing else, goes to standard output, whatever its encoding."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from outpace.errors import OutpaceError


def own_standard_streams() -> None:
    """Make this process's streams safe to write to; for the command line, which owns its process.

    Afterwards `sys.stdout` alone leads to the standard output that the process was started with: descriptor 1 goes to
    standard error, so that what a library prints there cannot mix with the product. Raises OutpaceError where
    standard output is closed: whatever would be produced would be lost.
    """
    closed = [number for number in (0, 1, 2) if not _is_open(number)]
    for _ in closed:
        os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, so no model file ever gets it
    if sys.stdin is None:
        sys.stdin = os.fdopen(os.open(os.devnull, os.O_RDONLY), encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
    if sys.stdout is None:
        raise OutpaceError("standard output is closed, so the result would be lost: send it to a file or to /dev/null")
    sys.stdout.flush()
    product = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(product, "w", encoding=sys.stdout.encoding, errors="backslashreplace", closefd=False)


def escape_what_does_not_fit() -> None:
    r"""Let the streams write what their encoding lacks as an escape (`\xe9`, `\u2019`) instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def put(text: str, end: str = "\n") -> None:
    """Write a piece of what the command produces to standard output, at once.

    Raises BrokenPipeError where nobody reads it, another OSError (a full disk) with the stream's name.
    """
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


class Failures:
    """Failures of single outputs (nobody reads one, a disk is full), which must not cost the others."""

    def __init__(self) -> None:
        self._first: OSError | None = None

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Keep a failure for later."""
        try:
            yield
        except OSError as error:
            self._first = self._first or error

    def tell(self) -> None:
        """Raise the first failure, if there was one."""
        if self._first is not None:
            raise self._first


def settle() -> None:
    """Write what is still buffered; where that fails, let it go, so that Python does not fail on it at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)
            sys.stdout.flush()


def as_json(value: Any) -> str:
    """Return JSON for standard output: unless that is UTF-8, other characters stand as JSON's own escapes."""
    text = json.dumps(value, ensure_ascii=False)
    is_utf8 = codecs.lookup(getattr(sys.stdout, "encoding", None) or "utf-8").name == "utf-8"
    has_halves = any("\ud800" <= character <= "\udfff" for character in text)  # of surrogates: not in UTF-8
    return text if is_utf8 and not has_halves else json.dumps(value)


def note(text: str, end: str = "\n") -> None:
    """Write to standard error; that it is gone or full must not cost a text."""
    with contextlib.suppress(OSError, ValueError):
        print(text, end=end, file=sys.stderr, flush=True)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
