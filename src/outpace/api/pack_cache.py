"""Packed matrices on disk: the second load of a model maps them in place of packing (docs/decisions/0015).

A file holds one model as one build of this package packs it:

    magic, length of the header in 64 bits, header (JSON: key, matrices) | tiles of each matrix, from multiples of 64 on

It is written whole or not at all, while the model is already in use. It counts only if its key is the model's: the
fingerprint, size and time of the model's files, how they are rounded, the instruction set, and this package's compiled
module. The files used longest ago are deleted where all of them would take more than LIMIT.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outpace.errors import UsageError
from outpace.models.checkpoint import Checkpoint
from outpace.ops.layers import Weight
from outpace.version import VERSION
from outpace.weights.catalog import cache_folder
from outpace.weights.gguf import part_names

MINIMUM = 300_000_000  # bytes of a model; smaller ones are packed before their tokenizer is built
LIMIT = 32 << 30  # bytes of all files
_MAGIC = b"OUTPACKS"
_ALIGNMENT = 64
_HEADER_LIMIT = 1 << 26
_STALE = 3600.0  # seconds after which a file that was never finished is nobody's
_SUFFIX = ".packed"


@dataclass(slots=True)
class PackedModel:
    """The packed matrices of one model: those of its file, if there is one; else those to be written there.

    ops: that pack and map (the native ones). folder: of all files. limit: see LIMIT.
    """

    ops: Any
    folder: Path
    key: dict[str, Any]
    limit: int = LIMIT
    _file: Any = None
    _table: dict[str, list[Any]] = field(default_factory=dict)
    _new: dict[str, Weight] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, UsageError):  # then it is packed again
            table = _read_header(self.path, self.key)
            self._file = self.ops.packed_file(self.path)
            self._table = table
            os.utime(self.path)

    @property
    def path(self) -> Path:
        return self.folder / (hashlib.sha256(_json(self.key)).hexdigest()[:32] + _SUFFIX)

    @property
    def is_found(self) -> bool:
        """Whether there is a file."""
        return self._file is not None

    def take(self, name: str, shape: tuple[int, ...], pack: Callable[[], Weight]) -> Weight:
        """Return a matrix of the file or, if it has none of that name and shape, what `pack` makes."""
        entry = self._table.get(name)
        if entry is not None and tuple(entry[2]) == shape:
            with contextlib.suppress(UsageError):  # a damaged file
                found: Weight = self._file.matrix(entry[0], entry[1], *shape)
                return found
        handle = self._new[name] = pack()
        return handle

    def save(self) -> threading.Thread | None:
        """Begin to write a file, where there was none that had all; the thread ends when it is there."""
        if not self._new:
            return None
        if self._table:
            self.path.unlink(missing_ok=True)  # another one is written by the next load
            return None
        thread = threading.Thread(target=self._write, args=(self._new,), name="outpace packed model")
        self._new = {}
        thread.start()
        return thread

    def _write(self, handles: dict[str, Weight]) -> None:
        new = self.folder / f".{os.getpid()}.{threading.get_ident()}{_SUFFIX}"
        with contextlib.suppress(OSError):  # no room, or no right to write: the next load packs again
            self.folder.mkdir(parents=True, exist_ok=True)
            tiles = {name: self.ops.tiles(handle) for name, handle in handles.items()}
            header, size = _header(self.key, {name: (handles[name], len(tiles[name])) for name in tiles})
            if not _has_room(self.folder, size, self.limit):
                return
            try:
                with open(new, "xb", buffering=0) as file:
                    for part in (header, *tiles.values()):
                        _write_all(file.fileno(), memoryview(part).cast("B"))
                        _write_all(file.fileno(), memoryview(bytes(-len(part) % _ALIGNMENT)))
                    os.fsync(file.fileno())
                os.replace(new, self.path)
            finally:
                new.unlink(missing_ok=True)


def packed_model(
    checkpoint: Checkpoint, ops: Any, quantize: str | None, *, folder: Path | None = None, minimum: int = MINIMUM
) -> PackedModel | None:
    """Return the packed matrices of a model; None where a file of them would not pay, or these ops have none."""
    if checkpoint.num_bytes < minimum or not hasattr(ops, "packed_file"):
        return None
    key = {
        "version": VERSION,
        "module": ops.module,
        "fingerprint": checkpoint.fingerprint.hex(),
        "files": [[path.name, found.st_size, found.st_mtime_ns] for path, found in _files(checkpoint.path)],
        "quantize": quantize,
    }
    return PackedModel(ops, cache_folder().with_name("packed") if folder is None else folder, key)


def _files(path: Path) -> list[tuple[Path, os.stat_result]]:
    """Return the files that a model is read from."""
    if path.is_dir():
        paths = sorted(p for p in path.iterdir() if p.is_file())
    else:
        paths = [path.with_name(name) for name in part_names(path.name) or [path.name]]
    return [(p, p.stat()) for p in paths]


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _header(key: dict[str, Any], parts: dict[str, tuple[Any, int]]) -> tuple[bytes, int]:
    """Return the header of matrices (handle, bytes), and the size of the file. Offsets count from the header's end."""
    table, offset = {}, 0
    for name, (handle, size) in parts.items():
        table[name] = [offset, handle.format, list(handle.shape)]
        offset += size + -size % _ALIGNMENT
    content = _json({"key": key, "bytes": offset, "matrices": table})
    content += b" " * (-(len(_MAGIC) + 8 + len(content)) % _ALIGNMENT)
    header = _MAGIC + len(content).to_bytes(8, "little") + content
    return header, len(header) + offset


def _read_header(path: Path, key: dict[str, Any]) -> dict[str, list[Any]]:
    """Return offset in the file, format and shape of each matrix; ValueError for a file of another model, or a part."""
    with open(path, "rb") as file:
        start = file.read(len(_MAGIC) + 8)
        length = int.from_bytes(start[len(_MAGIC) :], "little")
        if not start.startswith(_MAGIC) or length > _HEADER_LIMIT:
            raise ValueError("not a file of packed matrices")
        found = json.loads(file.read(length))
        begin = file.tell()
        if found["key"] != key or os.fstat(file.fileno()).st_size != begin + found["bytes"]:
            raise ValueError("of another model, or not whole")
    return {name: [begin + offset, format, shape] for name, (offset, format, shape) in found["matrices"].items()}


def _write_all(descriptor: int, content: memoryview) -> None:
    while content:
        content = content[os.write(descriptor, content[: 1 << 24]) :]


def _has_room(folder: Path, size: int, limit: int) -> bool:
    """Delete what is oldest until `size` more bytes are within the limit; say whether the disk has them twice."""
    found = []
    for path in folder.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError):  # another process may delete it too
            status = path.stat()
            if path.name.startswith("."):
                if time.time() - status.st_mtime > _STALE:
                    path.unlink()
            else:
                found.append((status.st_mtime, status.st_size, path))
    total = size + sum(bytes_ for _, bytes_, _ in found)
    for _, bytes_, path in sorted(found):
        if total <= limit:
            break
        path.unlink(missing_ok=True)
        total -= bytes_
    return total <= limit and shutil.disk_usage(folder).free >= 2 * size
