"""Write GGUF files (version 3), tensor by tensor: what is written before stays on disk, not in memory."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from outpace.errors import UsageError
from outpace.ops.formats import row_bytes
from outpace.types import RawTensor
from outpace.weights.gguf import MAGIC, TYPE_NUMBERS

_ALIGNMENT = 32
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY, _UINT64, _INT64, _FLOAT64 = 4, 5, 6, 7, 8, 9, 10, 11, 12
_ARRAY_TYPES = {"B": 0, "b": 1, "H": 2, "h": 3, "I": 4, "i": 5, "f": 6, "L": 10, "Q": 10, "l": 11, "q": 11, "d": 12}


class Planned(NamedTuple):
    """A tensor to come: what the header says of it."""

    name: str
    format: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape[:-1], dtype=np.int64)) * row_bytes(self.name, self.format, self.shape[-1])


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Sequence[Planned],
    content: Callable[[int], RawTensor],
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write a file, whole or not at all, and return its bytes.

    metadata: as `read_gguf` returns them; whole numbers become 32-bit ones where they fit. content(i): tensor i, asked
    for in order, one at a time. progress(done, total): bytes of tensors.

    A file under that name stays as it is until the new one is complete. Raises UsageError where nothing can be written.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with open(new, "xb") as file:
            _write(file, metadata, tensors, content, progress)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        os.replace(new, path)
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be written ({error.strerror or error}): name a file in a folder that exists and has room"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink()
    return size


def _write(
    file: BinaryIO,
    metadata: Mapping[str, Any],
    tensors: Sequence[Planned],
    content: Callable[[int], RawTensor],
    progress: Callable[[int, int], None] | None,
) -> None:
    file.write(MAGIC + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        file.write(_string(key) + _entry(value))
    offset, total = 0, sum(tensor.num_bytes for tensor in tensors)
    for tensor in tensors:
        dimensions = tuple(reversed(tensor.shape))
        file.write(_string(tensor.name) + struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions))
        file.write(struct.pack("<IQ", TYPE_NUMBERS[tensor.format], offset))
        offset += -(-tensor.num_bytes // _ALIGNMENT) * _ALIGNMENT
    done = 0
    for i, tensor in enumerate(tensors):
        file.write(bytes(-file.tell() % _ALIGNMENT))
        found = content(i)
        assert (found.format, found.shape) == (tensor.format, tensor.shape), f"{tensor.name} is not as planned"
        file.write(np.ascontiguousarray(found.data).reshape(-1).data)
        done += tensor.num_bytes
        if progress:
            progress(done, total)
    file.write(bytes(-file.tell() % _ALIGNMENT))


def _string(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def _entry(value: Any) -> bytes:
    """Return the type and the bytes of a metadata value."""
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return _whole(value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    return struct.pack("<I", _ARRAY) + _array(value)


def _whole(value: int) -> bytes:
    if 0 <= value < 1 << 32:
        return struct.pack("<II", _UINT32, value)
    if value < 0:
        return struct.pack("<Ii", _INT32, value) if value >= -(1 << 31) else struct.pack("<Iq", _INT64, value)
    return struct.pack("<IQ", _UINT64, value)


def _array(values: Any) -> bytes:
    """Return the element type, the length and the elements of a list of one kind, or of an array of numbers."""
    if hasattr(values, "typecode") or isinstance(values, np.ndarray):
        numbers: NDArray[Any] = np.asarray(values)
        kind = _ARRAY_TYPES[numbers.dtype.char]
        return struct.pack("<IQ", kind, numbers.size) + numbers.astype(numbers.dtype.newbyteorder("<")).tobytes()
    if values and isinstance(values[0], bool):
        return struct.pack("<IQ", _BOOL, len(values)) + bytes(values)
    return struct.pack("<IQ", _STRING, len(values)) + b"".join(map(_string, values))
