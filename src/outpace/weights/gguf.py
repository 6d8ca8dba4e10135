"""Read GGUF files: metadata as Python values, tensors memory-mapped. Knows nothing of models.

Layout of versions 2 and 3, little endian:

    magic, version, number of tensors, number of metadata entries
    | metadata: key, type, value | tensors: name, dimensions, type, offset | padding | tensor data

Nothing in the header is believed: every length and count is compared with the bytes that are left before
anything is allocated, so a malformed file costs a `WeightsError` that names the field. Time is linear in the header,
and memory at most 24 bytes for each of its bytes, and 1 MiB: arrays of numbers stay as compact as in the file.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
import sys
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from outpace.errors import WeightsError
from outpace.ops.formats import BLOCKS, Block
from outpace.types import RawTensor
from outpace.weights.files import HEADER_LIMIT, map_file, present
from outpace.weights.values import shown

try:
    from outpace.ops.native import read_strings as _read_strings
except ImportError:  # the module is not compiled here
    _read_strings = None  # type: ignore[assignment]

MAGIC = b"GGUF"

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MIN_ENTRY, _MIN_TENSOR = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8  # bytes

_FORMATS = {
    **{0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0"},
    **{10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 30: "BF16"},
    **{20: "IQ4_NL", 23: "IQ4_XS", 39: "MXFP4"},
}
TYPE_NUMBERS = {format: number for number, format in _FORMATS.items()}
_INDEX_FORMATS = {27: "I64"}
_INDEX_BLOCK = Block(1, 8)
_NOT_SUPPORTED = {  # to refuse them by name
    **{9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S"},
    **{24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 40: "NVFP4"},
}
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """What a GGUF file (or all parts of a split one) holds; tensor names are the file's own."""

    path: Path  # of the first part
    metadata: dict[str, Any]  # numbers, booleans, strings; lists of strings or booleans, and `array`s of numbers
    tensors: dict[str, RawTensor]  # in the order of their data


def read_gguf(path: Path, indices: bool = False) -> GGUFFile:
    """Return the file's metadata and tensors; any part of a split file stands for all of them.

    indices: 64-bit integers too, in the format I64; no network is computed from those.
    Raises WeightsError for a file that is malformed, in another version or byte order, or with tensors in
    a format that Outpace does not read.
    """
    first = _read_part(path, indices)
    count = first.metadata.get("split.count", 1)
    if not isinstance(count, int) or count < 1:
        raise WeightsError(f"{path}: metadata split.count must be a positive integer, is {shown(count)}")
    return first if count == 1 else _join([_read_part(part, indices) for part in _part_paths(path, count)])


def means_none(value: Any, num_tokens: int) -> bool:
    """Whether a token id says that there is no such token: -1, in whatever width, or the number of tokens."""
    return type(value) is int and value in (-1, (1 << 32) - 1, (1 << 64) - 1, num_tokens)


def part_names(name: str) -> list[str] | None:
    """Return the file names of all parts of the split file that `name` belongs to, or None if it is not one."""
    match = _PART.fullmatch(name)
    if match is None:
        return None
    count = int(match["count"])
    return [f"{match['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


def _part_paths(path: Path, count: int) -> list[Path]:
    names = part_names(path.name)
    if names is None or len(names) != count:
        raise WeightsError(
            f"{path}: is one of {count} parts (metadata split.count), and its name does not tell the others': "
            f"name them NAME-00001-of-{count:05d}.gguf and so on, or merge them with llama-gguf-split --merge"
        )
    missing = [name for name in names if not present(path.with_name(name))]
    if missing:
        raise WeightsError(f"{path}: {len(missing)} of its {count} parts are missing: put {missing[0]} beside it")
    return [path.with_name(name) for name in names]


def _join(parts: Sequence[GGUFFile]) -> GGUFFile:
    tensors: dict[str, RawTensor] = {}
    for number, part in enumerate(parts):
        found = part.metadata.get("split.no"), part.metadata.get("split.count")
        if found != (number, len(parts)):
            raise WeightsError(
                f"{part.path}: split.no and split.count must be {(number, len(parts))}, are {shown(found)}"
            )
        for name in part.tensors.keys() & tensors.keys():
            raise WeightsError(f"{part.path}: tensor {name!r} is in an earlier part too")
        tensors |= part.tensors
    total = parts[0].metadata.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise WeightsError(
            f"{parts[0].path}: split.tensors.count is {shown(total)}, the parts hold {len(tensors)} tensors"
        )
    return GGUFFile(parts[0].path, parts[0].metadata, tensors)


def _read_part(path: Path, indices: bool) -> GGUFFile:
    buffer = map_file(path)
    header = _Header(buffer, str(path))
    if buffer[:4] != MAGIC:
        raise header.error(f"magic is {buffer[:4]!r}, must be {MAGIC!r}: this is not a GGUF file")
    header.skip(4, "magic")
    _check_version(header)
    num_tensors = header.count("number of tensors", _MIN_TENSOR)
    num_entries = header.count("number of metadata entries", _MIN_ENTRY)
    metadata = _read_metadata(header, num_entries)
    infos = [_read_info(header, _FORMATS | _INDEX_FORMATS if indices else _FORMATS) for _ in range(num_tensors)]
    return GGUFFile(path, metadata, _place(infos, buffer, header, _alignment(header, metadata)))


class _Header:
    """Reads a header front to back; refuses to step over its end."""

    def __init__(self, buffer: mmap.mmap, where: str) -> None:
        self._buffer = buffer
        self._bytes = np.frombuffer(buffer, np.uint8)
        self._where = where
        self._end = min(len(buffer), HEADER_LIMIT)
        self.position = 0

    def error(self, message: str) -> WeightsError:
        return WeightsError(f"{self._where}: {message}")

    def skip(self, num_bytes: int, field: str) -> int:
        """Return the position, and move it by `num_bytes`."""
        start, left = self.position, self._end - self.position
        if num_bytes > left:
            limit = "the file has" if self._end == len(self._buffer) else f"a header of {HEADER_LIMIT >> 20} MiB has"
            raise self.error(f"{field} takes {num_bytes} bytes at offset {start}, {limit} {left} left")
        self.position = start + num_bytes
        return start

    def number(self, code: str, field: str) -> Any:
        layout = "<" + code
        return struct.unpack_from(layout, self._buffer, self.skip(struct.calcsize(layout), field))[0]

    def count(self, field: str, item_bytes: int) -> int:
        """Return a 64-bit count of items that take at least `item_bytes` each and still fit."""
        count: int = self.number("Q", field)
        if count * item_bytes > self._end - self.position:
            raise self.error(f"{field} is {count}, more than the {self._end - self.position} bytes left can hold")
        return count

    def string(self, field: str) -> str:
        return self._strings(1, field)[0]

    def value(self, kind: int, field: str) -> Any:
        """Return a metadata value of the type numbered `kind`."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind], field)
        if kind == _STRING:
            return self.string(field)
        if kind == _ARRAY:
            return self._array(field)
        raise self.error(f"{field} has the unknown type {kind}, must be in [0, 12]")

    def _array(self, field: str) -> list[Any] | array[Any]:
        kind = self.number("I", f"{field} element type")
        if kind == _STRING:
            return self._string_array(self.count(f"{field} length", 8), field)
        if kind not in _SCALARS:
            what = "is an array of arrays" if kind == _ARRAY else f"has elements of the unknown type {kind}"
            raise self.error(f"{field} {what}: not supported")
        code = _SCALARS[kind]
        count = self.count(f"{field} length", struct.calcsize(code))
        start = self.skip(count * struct.calcsize(code), field)
        content = self._buffer[start : self.position]
        if code == "?":
            return [byte != 0 for byte in content]
        values = array(code, content)
        if sys.byteorder == "big":
            values.byteswap()
        return values

    def _string_array(self, count: int, field: str) -> list[str]:
        """Return strings, read in C++ where that is installed: a vocabulary and its merges are some 300,000."""
        found = None if _read_strings is None else _read_strings(self._bytes, self.position, self._end, count)
        if found is None:
            return self._strings(count, field)  # says what is wrong with them, if something is
        values, self.position = found
        return values

    def _strings(self, count: int, field: str) -> list[str]:
        buffer, end, position, values = self._buffer, self._end, self.position, list[str]()
        try:
            for _ in range(count):
                start = position + 8
                position = start + int.from_bytes(buffer[position:start], "little")
                if position > end:
                    raise self.error(f"{field}: a string ends at offset {position}, the end is at {end}")
                values.append(buffer[start:position].decode())
        except UnicodeDecodeError as error:
            raise self.error(f"{field}: string {len(values)} is not UTF-8: {error}") from None
        self.position = position
        return values


def _check_version(header: _Header) -> None:
    version = header.number("I", "version")
    if version and version & 0xFFFF == 0:
        raise header.error("the file is big-endian, only little-endian GGUF is supported: convert it again")
    if version not in (2, 3):
        raise header.error(f"version is {version}, must be 2 or 3: convert the model again with a current converter")


def _read_metadata(header: _Header, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for number in range(count):
        key = header.string(f"key of metadata entry {number}")
        if key in metadata:
            raise header.error(f"metadata {key!r} occurs twice")
        metadata[key] = header.value(header.number("I", f"type of metadata {key!r}"), f"metadata {key!r}")
    return metadata


def _alignment(header: _Header, metadata: dict[str, Any]) -> int:
    value = metadata.get("general.alignment", 32)
    if type(value) is not int or value <= 0 or value & (value - 1):
        raise header.error(f"general.alignment must be a power of two, is {shown(value)}")
    return value


class _Info(NamedTuple):
    name: str
    shape: tuple[int, ...]
    format: str
    offset: int  # from the start of the tensor data


def _read_info(header: _Header, formats: Mapping[int, str]) -> _Info:
    name = header.string("name of a tensor")
    num_dimensions = header.number("I", f"number of dimensions of tensor {name!r}")
    if not 1 <= num_dimensions <= 4:
        raise header.error(f"tensor {name!r} has {num_dimensions} dimensions, must have 1 to 4")
    dimensions = [header.number("Q", f"dimensions of tensor {name!r}") for _ in range(num_dimensions)]
    if 0 in dimensions or math.prod(dimensions) >= 1 << 63:
        raise header.error(f"dimensions of tensor {name!r} are {dimensions}: their product must be in [1, 2^63)")
    kind = header.number("I", f"type of tensor {name!r}")
    if kind not in formats:
        what = f"type {_NOT_SUPPORTED[kind]}" if kind in _NOT_SUPPORTED else f"the unknown type {kind}"
        raise header.error(f"tensor {name!r} has {what}, supported are {', '.join(BLOCKS)}: take or make another file")
    return _Info(name, tuple(reversed(dimensions)), formats[kind], header.number("Q", f"offset of tensor {name!r}"))


def _place(infos: Sequence[_Info], buffer: mmap.mmap, header: _Header, alignment: int) -> dict[str, RawTensor]:
    """Return each tensor as a view of the file, or refuse one that is not a place of its own in it."""
    data_start = -(-header.position // alignment) * alignment
    whole = np.frombuffer(buffer, np.uint8)
    tensors: dict[str, RawTensor] = {}
    free = data_start  # where the tensor before ends
    for name, shape, format, offset in sorted(infos, key=lambda info: info.offset):
        block = BLOCKS.get(format, _INDEX_BLOCK)
        if shape[-1] % block.size:
            raise header.error(f"tensor {name!r} ({format}) has rows of {shape[-1]} values, not whole {block.size}s")
        width = shape[-1] // block.size * block.bytes
        rows = math.prod(shape[:-1])
        start, end = data_start + offset, data_start + offset + rows * width
        if offset % alignment:
            raise header.error(f"offset of tensor {name!r} is {offset}, must be a multiple of {alignment} (alignment)")
        if end > len(whole):
            raise header.error(f"tensor {name!r} ends at byte {end}, the file at {len(whole)}: fetch the file again")
        if start < free:
            raise header.error(f"tensor {name!r} at offset {offset} overlaps the one before it")
        if name in tensors:
            raise header.error(f"tensor {name!r} occurs twice")
        tensors[name] = RawTensor(name, whole[start:end].reshape(rows, width), format, shape)
        free = end
    return tensors
