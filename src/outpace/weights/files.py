"""Open files that nobody vouches for: memory maps, and JSON objects of bounded size."""

from __future__ import annotations

import json
import mmap
from collections import Counter
from pathlib import Path
from typing import Any

from outpace.errors import WeightsError

HEADER_LIMIT = 1 << 26  # bytes that a header or a JSON file may take: several times the largest vocabulary known


def map_file(path: Path) -> mmap.mmap:
    """Return the whole file, mapped read-only. It must not be cut short while it is in use."""
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise WeightsError(f"{path}: the file is empty: fetch it again") from None
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}") from None


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds."""
    try:
        with path.open("rb") as file:
            text = file.read(HEADER_LIMIT + 1)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(text) > HEADER_LIMIT:
        raise WeightsError(f"{path}: is larger than {HEADER_LIMIT >> 20} MiB: not a description of a model")
    return parse_object(text, str(path))


def parse_object(text: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object in `text`, refusing names that occur twice; `where` names it in errors."""
    try:
        value = json.loads(text, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:  # wrong UTF-8 is a ValueError
        raise WeightsError(f"{where}: is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise WeightsError(f"{where}: must be a JSON object, is a {type(value).__name__}")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the name {name!r} occurs twice")
    return result
