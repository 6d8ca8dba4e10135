"""Read the tensors of a file that `torch.save` wrote (.bin, .pt) without running anything that it names.

Such a file is a zip archive: `data.pkl`, and each storage's bytes in `data/KEY`, uncompressed. A pickle is a program
for a stack machine that may import and call whatever it names, so Python's own reader is not used, nor PyTorch (the
core has no use for it, and its `weights_only` has been bypassed before: CVE-2025-32434). This machine calls nothing.
It knows the few instructions that a dictionary of tensors takes; a name is only a name, and what is built from it is
a description of a tensor or it is refused.

Memory: the program is at most 1 MiB, its stack holds only what it wrote, and tensors are mapped, not read.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outpace.errors import WeightsError
from outpace.types import RawTensor
from outpace.weights.files import map_file
from outpace.weights.values import shown

_PROGRAM_LIMIT = 1 << 20  # bytes: a drafter's has some 10,000
_STORAGES = {
    **{"FloatStorage": ("F32", 4), "HalfStorage": ("F16", 2), "BFloat16Storage": ("BF16", 2)},
    **{"LongStorage": ("I64", 8), "IntStorage": ("I32", 4), "BoolStorage": ("BOOL", 1)},
}
_LOCAL_HEADER, _NAME_LENGTH = 30, 26  # of a file in a zip archive, bytes; where its name's length stands


@dataclass(frozen=True, slots=True)
class _Name:
    """What a pickle would import."""

    path: str


@dataclass(frozen=True, slots=True)
class _Storage:
    format: str
    item_bytes: int
    key: str
    count: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    storage: _Storage
    offset: int  # in items
    shape: tuple[int, ...]


def read_pickle(path: Path) -> dict[str, RawTensor]:
    """Return the tensors of a file, as views of it; integers and booleans have the formats I64, I32 and BOOL.

    Raises WeightsError for what is malformed, cut short, or anything but a dictionary of tensors.
    """
    buffer = map_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            program = _small(archive, entries, "data.pkl", path)
            if "byteorder" in entries and _small(archive, entries, "byteorder", path) != b"little":
                raise WeightsError(f"{path}: is not little-endian: save it again on another machine")
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError, zlib.error) as error:
        raise WeightsError(
            f"{path}: is not what torch.save writes since PyTorch 1.6 ({error}): fetch it again, or save it again"
        ) from None
    whole = np.frombuffer(buffer, np.uint8)
    return {
        name: RawTensor(
            name, _view(tensor, entries, whole, f"{path}: tensor {name!r}"), tensor.storage.format, tensor.shape
        )
        for name, tensor in _tensors(program, path).items()
    }


def _small(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], name: str, path: Path) -> bytes:
    info = entries.get(name)
    if info is None or info.file_size > _PROGRAM_LIMIT:
        raise WeightsError(f"{path}: {name} must be in the archive, and at most {_PROGRAM_LIMIT >> 20} MiB")
    return archive.read(info)


def _view(
    tensor: _Tensor, entries: dict[str, zipfile.ZipInfo], whole: NDArray[np.uint8], where: str
) -> NDArray[np.uint8]:
    """Return the bytes of a tensor, [rows, bytes of a row], where they lie in the file."""
    storage, info = tensor.storage, entries.get(f"data/{tensor.storage.key}")
    if info is None or info.compress_type != zipfile.ZIP_STORED:
        raise WeightsError(f"{where}: its bytes, data/{storage.key}, must be in the archive, uncompressed")
    header = info.header_offset
    if header + _LOCAL_HEADER > len(whole):
        raise WeightsError(f"{where}: its bytes lie behind the file's end: fetch it again")
    lengths = whole[header + _NAME_LENGTH : header + _LOCAL_HEADER].tobytes()
    begin = header + _LOCAL_HEADER + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
    end = begin + info.file_size
    size = math.prod(tensor.shape)
    if info.file_size != storage.count * storage.item_bytes or tensor.offset + size > storage.count or end > len(whole):
        raise WeightsError(f"{where}: shape {tensor.shape} does not fit its bytes: the file is damaged, fetch it again")
    begin += tensor.offset * storage.item_bytes
    data = whole[begin : begin + size * storage.item_bytes]
    return data.reshape(math.prod(tensor.shape[:-1]), -1)


def _tensors(program: bytes, path: Path) -> dict[str, _Tensor]:
    try:
        result = _Machine(str(path)).run(program)
    except (IndexError, KeyError, TypeError, ValueError) as error:  # an empty stack, an unhashable key
        raise WeightsError(f"{path}: data.pkl is damaged ({error}): fetch the file again") from None
    if not isinstance(result, dict):
        raise WeightsError(f"{path}: must hold a dictionary of tensors by name")
    odd = [name for name, value in result.items() if not isinstance(value, _Tensor)]
    if odd:
        raise WeightsError(f"{path}: {odd[0]!r:.60} must be a tensor: only a state_dict is read")
    return result


_MARK = object()
_SETS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_PUSHED = ("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_IGNORED = ("PROTO", "FRAME", "STOP")


class _Machine:
    """The stack machine of a pickle, for data only."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._others: dict[str, Callable[[Any], None]] = {
            "MARK": lambda _: self._stack.append(_MARK),
            "EMPTY_DICT": lambda _: self._stack.append({}),
            "EMPTY_TUPLE": lambda _: self._stack.append(()),
            "TUPLE": lambda _: self._stack.append(tuple(self._to_mark())),
            "GLOBAL": lambda name: self._stack.append(_Name(name.replace(" ", "."))),
            "STACK_GLOBAL": self._stack_global,
            "BINPUT": lambda index: self._memo.__setitem__(index, self._stack[-1]),
            "LONG_BINPUT": lambda index: self._memo.__setitem__(index, self._stack[-1]),
            "MEMOIZE": lambda _: self._memo.__setitem__(len(self._memo), self._stack[-1]),
            "BINGET": lambda index: self._stack.append(self._memo[index]),
            "LONG_BINGET": lambda index: self._stack.append(self._memo[index]),
            "SETITEM": lambda _: self._set_items([self._stack.pop(-2), self._stack.pop()]),
            "SETITEMS": lambda _: self._set_items(self._to_mark()),
            "BINPERSID": lambda _: self._stack.append(self._storage(self._stack.pop())),
            "REDUCE": self._reduce,
            "BUILD": lambda _: self._stack.pop(),  # a state_dict's versions: nothing of the tensors
        }

    def run(self, program: bytes) -> Any:
        """Return what the program leaves."""
        for opcode, argument, _ in pickletools.genops(BytesIO(program)):
            name = opcode.name
            if name in _PUSHED:
                self._stack.append(argument)
            elif name in _SETS:
                self._stack.append(_SETS[name])
            elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
                size = int(name[-1])
                self._stack[-size:] = [tuple(self._stack[-size:])]
            elif name in self._others:
                self._others[name](argument)
            elif name not in _IGNORED:
                raise self._error(f"uses the instruction {name}")
        [result] = self._stack
        return result

    def _error(self, problem: str) -> WeightsError:
        return WeightsError(
            f"{self._where}: data.pkl {problem}, which no dictionary of tensors needs: nothing of it was run; take a "
            f"file in safetensors"
        )

    def _to_mark(self) -> list[Any]:
        at = len(self._stack) - 1 - self._stack[::-1].index(_MARK)
        items = self._stack[at + 1 :]
        del self._stack[at:]
        return items

    def _set_items(self, pairs: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or not all(isinstance(key, str) for key in pairs[::2]):
            raise self._error("fills something that is no dictionary by name")
        target.update(zip(pairs[::2], pairs[1::2], strict=True))

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(_Name(f"{module}.{name}"))

    def _storage(self, description: Any) -> _Storage:
        kind, name, key, _, count = description
        known = _STORAGES.get(name.path.removeprefix("torch.")) if isinstance(name, _Name) else None
        if kind != "storage" or known is None or not isinstance(key, str) or type(count) is not int or count < 0:
            raise self._error(f"has the storage {shown(description)}, supported are {', '.join(_STORAGES)}")
        return _Storage(*known, key, count)

    def _reduce(self, _: Any) -> None:
        """Understand what would be a call: an empty dictionary, a tensor, a tensor that is a parameter."""
        arguments, name = self._stack.pop(), self._stack.pop()
        path = name.path if isinstance(name, _Name) else shown(name)
        if path == "collections.OrderedDict" and not arguments:
            self._stack.append({})
        elif path == "torch._utils._rebuild_tensor_v2":
            self._stack.append(self._tensor(*arguments[:4]))
        elif path == "torch._utils._rebuild_parameter" and isinstance(arguments[0], _Tensor):
            self._stack.append(arguments[0])
        else:
            raise self._error(f"would call {path}")

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any) -> _Tensor:
        sizes = (offset, *shape, *strides) if isinstance(shape, tuple) and isinstance(strides, tuple) else (None,)
        if not isinstance(storage, _Storage) or not all(type(size) is int and 0 <= size < 1 << 48 for size in sizes):
            raise self._error("describes a tensor by what are no sizes")
        wanted = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        if not shape or 0 in shape or len(shape) > 8:
            raise self._error(f"has a tensor of shape {shape!r:.60}")
        if any(n > 1 and stride != want for n, stride, want in zip(shape, strides, wanted, strict=True)):
            raise self._error(f"has a tensor whose rows do not follow one another (strides {strides!r:.60})")
        return _Tensor(storage, offset, shape)
