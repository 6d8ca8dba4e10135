"""Read safetensors files, sharded or not: tensors memory-mapped. Never opens a pickle.

A file is an 8-byte length, a JSON header (name -> dtype, shape, data_offsets) and the data. The header is
parsed here because NumPy, through which the safetensors library would hand tensors over, has no bfloat16.
Like GGUF's it is not believed: what does not fit the file is a `WeightsError` that names the tensor.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from outpace.errors import WeightsError
from outpace.ops.formats import BLOCKS
from outpace.types import RawTensor
from outpace.weights.files import HEADER_LIMIT, map_file, parse_object, present, read_object
from outpace.weights.values import shown

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_FORMATS = {format: BLOCKS[format].bytes for format in ("F32", "F16", "BF16")}  # called alike here and there
_INDEX_FORMATS = {"I64": 8, "I32": 4, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1}


def read_folder(folder: Path, indices: bool = False) -> dict[str, RawTensor]:
    """Return the tensors of a Hugging Face folder, from `model.safetensors` or from its shards.

    indices: as in `read_safetensors`.
    """
    if present(folder / INDEX):
        return _read_shards(folder / INDEX, indices)
    if present(folder / SINGLE):
        return read_safetensors(folder / SINGLE, indices)
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles:
        raise WeightsError(
            f"{folder}: its weights are pickles ({pickles[0]}), which can run any code when opened, so Outpace never "
            f"opens them: fetch the model's safetensors, or convert it once, with transformers: "
            f"AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(FOLDER, safe_serialization=True)"
        )
    raise WeightsError(f"{folder}: holds no weights: {SINGLE} or {INDEX} must be in it")


def _read_shards(index: Path, indices: bool) -> dict[str, RawTensor]:
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"{index}: weight_map must be an object of tensor names and files")
    paths = {tensor: _shard(index, name) for tensor, name in weight_map.items()}
    shards = {path: read_safetensors(path, indices) for path in dict.fromkeys(paths.values())}
    for tensor, path in paths.items():
        if tensor not in shards[path]:
            raise WeightsError(f"{index}: tensor {tensor!r} is not in {path.name}, where weight_map puts it")
    return {tensor: shards[path][tensor] for tensor, path in paths.items()}


def _shard(index: Path, name: Any) -> Path:
    # A link is followed (the hub's cache consists of them), but the name itself may not leave the folder.
    if not isinstance(name, str) or not name.endswith(".safetensors") or set(name) & set("/\\:\0"):
        raise WeightsError(f"{index}: weight_map must name .safetensors files of its own folder, not {shown(name)}")
    return index.with_name(name)


def read_safetensors(path: Path, indices: bool = False) -> dict[str, RawTensor]:
    """Return the tensors of one file, as views of it.

    indices: integers, booleans and 8-bit floats too, in the formats I64, I32, I8, U8, BOOL and F8_E4M3, and single
    numbers, as vectors of one; no network is computed from those.
    """
    buffer = map_file(path)
    if len(buffer) < 8:
        raise WeightsError(f"{path}: header length takes 8 bytes, the file has {len(buffer)}")
    length = int.from_bytes(buffer[:8], "little")
    if length > min(len(buffer) - 8, HEADER_LIMIT):
        raise WeightsError(f"{path}: header length is {length}, the file has {len(buffer)} bytes: fetch it again")
    header = parse_object(buffer[8 : 8 + length], f"{path}: header")
    header.pop("__metadata__", None)
    return _place(header, buffer, 8 + length, path, _FORMATS | _INDEX_FORMATS if indices else _FORMATS)


def _place(
    header: dict[str, Any], buffer: mmap.mmap, start: int, path: Path, formats: Mapping[str, int]
) -> dict[str, RawTensor]:
    data = np.frombuffer(buffer, np.uint8)[start:]
    tensors: dict[str, RawTensor] = {}
    free = 0  # where the tensor before ends
    for name, entry in sorted(header.items(), key=lambda item: _begin(item[1])):
        where = f"{path}: tensor {name!r}"
        format, shape = _kind(entry, where, formats)
        rows, width = math.prod(shape[:-1]), shape[-1] * formats[format]
        begin, end = _offsets(entry, where)
        if end - begin != rows * width:
            raise WeightsError(f"{where}: data_offsets span {end - begin} bytes, its shape takes {rows * width}")
        if begin < free or end > len(data):
            raise WeightsError(
                f"{where}: data_offsets are {[begin, end]}, must be in [{free}, {len(data)}]: it overlaps another "
                f"tensor, or the file is cut short: fetch it again"
            )
        tensors[name] = RawTensor(name, data[begin:end].reshape(rows, width), format, shape)
        free = end
    return tensors


def _begin(entry: Any) -> int:
    """Return where a tensor's data begins, to sort by; 0 for an entry that is refused later."""
    try:
        return int(entry["data_offsets"][0])
    except (TypeError, KeyError, IndexError, ValueError, OverflowError):
        return 0


def _kind(entry: Any, where: str, formats: Mapping[str, int]) -> tuple[str, tuple[int, ...]]:
    if not isinstance(entry, dict):
        raise WeightsError(f"{where}: must be an object with dtype, shape and data_offsets")
    format, shape = entry.get("dtype"), entry.get("shape")
    if shape == [] and "I32" in formats:
        shape = [1]
    if not isinstance(format, str) or format not in formats:
        raise WeightsError(f"{where}: dtype is {shown(format)}, supported are {', '.join(formats)}")
    if not isinstance(shape, list) or not shape or not all(type(n) is int and 0 < n < 1 << 48 for n in shape):
        raise WeightsError(f"{where}: shape must be a list of positive integers, is {shown(shape)}")
    if len(shape) > 8:
        raise WeightsError(f"{where}: shape has {len(shape)} dimensions, must have 1 to 8")
    return format, tuple(shape)


def _offsets(entry: dict[str, Any], where: str) -> tuple[int, int]:
    offsets = entry.get("data_offsets")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in offsets):
        raise WeightsError(f"{where}: data_offsets must be two integers [begin, end), are {shown(offsets)}")
    return offsets[0], offsets[1]
