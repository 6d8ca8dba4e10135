"""Tiny models for tests: as Hugging Face folders, as GGUF files, and GGUF files byte by byte."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from outpace.models import normalise
from outpace.models.select import tensors as tensors_called_for

Tensors = dict[str, NDArray[Any]]

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 80,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}


def tensors_of(raw: Mapping[str, Any], seed: int = 0, names: str = "folder") -> Tensors:
    """Return random float32 tensors for a config, under the names of a folder or of a GGUF file."""
    if names == "gguf":  # where a file is silent, heads share the width, also those of Qwen3
        raw = {"head_dim": raw["hidden_size"] // raw["num_attention_heads"]} | dict(raw)
    random, source = np.random.default_rng(seed), "gguf" if names == "gguf" else "folder"
    return {
        tensor.stored_name(source): random.standard_normal(tensor.stored_shape(source), dtype=np.float32)
        for tensor in tensors_called_for(normalise(raw, "a test"))
    }


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, Sequence[int], bytes]]) -> None:
    """Write name -> (dtype, shape, bytes), by hand, so that bfloat16 and mistakes can be written too."""
    header, data = {}, b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def write_folder(folder: Path, raw: Mapping[str, Any], tensors: Tensors | None = None) -> Path:
    """Write a Hugging Face folder with one safetensors file."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    tensors = tensors_of(raw) if tensors is None else tensors
    content = {name: ("F32", value.shape, value.tobytes()) for name, value in tensors.items()}
    write_safetensors(folder / "model.safetensors", content)
    return folder


def metadata_of(arch: str = "llama") -> dict[str, Any]:
    """Return the metadata of a GGUF file of CONFIG."""
    return {
        f"{arch}.vocab_size": 80,
        f"{arch}.embedding_length": 64,
        f"{arch}.feed_forward_length": 96,
        f"{arch}.block_count": 2,
        f"{arch}.attention.head_count": 4,
        f"{arch}.attention.head_count_kv": 2,
        f"{arch}.context_length": 128,
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{arch}.rope.freq_base": 10000.0,
        "tokenizer.ggml.tokens": [f"t{i}" for i in range(80)],
        "tokenizer.ggml.eos_token_id": 2,
    }


def write_gguf(
    path: Path,
    arch: str = "llama",
    metadata: Mapping[str, Any] | None = None,
    tensors: Tensors | None = None,
) -> Path:
    """Write a GGUF file with the `gguf` package; `metadata` overrides entries (None leaves one out)."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in (metadata_of(arch) | dict(metadata or {})).items():
        _add(writer, key, value)
    tensors = tensors_of(CONFIG | {"model_type": arch}, names="gguf") if tensors is None else tensors
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        (writer.add_uint32 if value >= 0 else writer.add_int32)(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, value)


# -- byte by byte --------------------------------------------------------------------------------


def text(value: str | bytes) -> bytes:
    content = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(content)) + content


def entry(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def u32(key: str, value: int) -> bytes:
    return entry(key, 4, struct.pack("<I", value))


def array(kind: int, count: int, content: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + content


def info(name: str, dimensions: Sequence[int], kind: int, offset: int, num_dimensions: int | None = None) -> bytes:
    count = len(dimensions) if num_dimensions is None else num_dimensions
    return text(name) + struct.pack(f"<I{len(dimensions)}QIQ", count, *dimensions, kind, offset)


def gguf_bytes(
    metadata: Sequence[bytes] = (),
    infos: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    num_tensors: int | None = None,
    num_entries: int | None = None,
    alignment: int = 32,
) -> bytes:
    counts = (
        (len(infos) if num_tensors is None else num_tensors),
        (len(metadata) if num_entries is None else num_entries),
    )
    header = magic + struct.pack("<IQQ", version, *counts) + b"".join(metadata) + b"".join(infos)
    return header + (b"\0" * (-len(header) % alignment) + data if infos else b"")
