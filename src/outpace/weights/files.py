"""Open files that nobody vouches for: regular files only, memory maps, and JSON objects of bounded size.

Memory stays in proportion to a file. Python needs some 30 bytes for a byte of dense JSON (`[],[],...`), so what is
denser than any description of a model is refused before it is parsed: more than one list, object or member in DENSITY
bytes, beyond the first FREE. What is left takes at most 24 bytes of memory for each byte of text, and 1 MiB, and a
time linear in it.
"""

from __future__ import annotations

import json
import mmap
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from outpace.errors import WeightsError

HEADER_LIMIT = 1 << 26  # bytes that a header or a JSON file may take: several times the largest vocabulary known
DENSITY = 8  # bytes of JSON for each list, object or member
FREE = 1 << 12  # lists, objects and members that may stand as densely as they like

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}

Failure = type[WeightsError]


def present(path: Path) -> bool:
    """Whether the name exists, be it a broken link or no file at all: reading it then says what is wrong."""
    return os.path.lexists(path)


def open_regular(path: Path, failure: Failure = WeightsError) -> int:
    """Return a descriptor of a regular file, open for reading; the caller closes it.

    A pipe or a device would make its reader wait for ever, so everything else is refused, without waiting.
    """
    try:
        if not stat.S_ISREG((found := os.stat(path)).st_mode):
            raise _irregular(path, found, failure)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # it may have been swapped meanwhile
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise failure(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise _irregular(path, found, failure)
    return descriptor


def _irregular(path: Path, found: os.stat_result, failure: Failure) -> WeightsError:
    kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
    return failure(f"{path}: must be a regular file, is {kind}")


def map_file(path: Path) -> mmap.mmap:
    """Return the whole file, mapped read-only. It must not be cut short while it is in use."""
    descriptor = open_regular(path)
    try:
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise WeightsError(f"{path}: the file is empty: fetch it again") from None
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}") from None
    finally:
        os.close(descriptor)


def read_bytes(path: Path, limit: int = HEADER_LIMIT, failure: Failure = WeightsError) -> bytes:
    """Return what a file holds; one longer than `limit` is no description of a model."""
    try:
        with os.fdopen(open_regular(path, failure), "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise failure(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(content) > limit:
        raise failure(f"{path}: is larger than {limit >> 20} MiB: not a description of a model")
    return content


def read_text(path: Path, limit: int = HEADER_LIMIT, failure: Failure = WeightsError) -> str:
    """Return the text that a file holds, in UTF-8."""
    try:
        return read_bytes(path, limit, failure).decode()
    except UnicodeDecodeError as error:
        raise failure(f"{path}: is not UTF-8: {error}") from None


def read_object(path: Path, failure: Failure = WeightsError) -> dict[str, Any]:
    """Return the JSON object that a file holds."""
    return parse_object(read_bytes(path, failure=failure), str(path), failure)


def parse_object(text: bytes, where: str, failure: Failure = WeightsError) -> dict[str, Any]:
    """Return the JSON object in `text`, refusing names that occur twice; `where` names it in errors."""
    counts = _count_outside_strings(text)
    _check_density(counts, len(text), where, failure)
    try:
        value = json.loads(text)
        if counts[0] != _count_members(value):
            value = json.loads(text, object_pairs_hook=_distinct)  # tells the name; takes more memory
    except (ValueError, RecursionError) as error:  # wrong UTF-8 is a ValueError
        raise failure(f"{where}: is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise failure(f"{where}: must be a JSON object, is a {type(value).__name__}")
    return value


def check_density(text: bytes, where: str, failure: Failure = WeightsError) -> None:
    """Raise if JSON would take too much memory for its size."""
    with_strings = sum(map(text.count, (b":", b"[", b"{")))  # quick, and nearly always enough
    if with_strings > FREE + len(text) // DENSITY:
        _check_density(_count_outside_strings(text), len(text), where, failure)


def _check_density(counts: tuple[int, int, int], size: int, where: str, failure: Failure) -> None:
    if sum(counts) > FREE + size // DENSITY:
        raise failure(
            f"{where}: is not a description of a model: {sum(counts)} lists, objects and members in {size} bytes "
            f"(at most {FREE} and one in {DENSITY} bytes)"
        )


def _count_outside_strings(text: bytes) -> tuple[int, int, int]:
    """Return how many members, lists and objects JSON has."""
    plain = np.frombuffer(text.replace(b"\\\\", b"--").replace(b'\\"', b"--"), np.uint8)  # without escaped quotes
    outside = np.cumsum(plain == ord('"'), dtype=np.uint8) % 2 == 0  # after an even number of quotes
    members, lists, objects = (int(np.count_nonzero((plain == ord(char)) & outside)) for char in ":[{")
    return members, lists, objects


def _count_members(value: Any) -> int:
    count, left = 0, [value]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            count += len(item)
            left += [inner for inner in item.values() if isinstance(inner, dict | list)]
        elif isinstance(item, list):
            left += [inner for inner in item if isinstance(inner, dict | list)]
    return count


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the name {name!r} occurs twice")
    return result
