"""Tiny random adapters: as files, and on a tiny network."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from outpace.models.adapter import Adapter, build
from outpace.runner import Runner
from outpace.types import MaskFilling
from outpace.weights.adapter import AdapterCheckpoint
from outpace.weights.trained import DrafterTarget
from tests.tiny import raw_tensor

RANK, SCALE = 4, 2.0
MODULES = (*(f"self_attn.{name}_proj" for name in "qkvo"), *(f"mlp.{name}_proj" for name in ("gate", "up", "down")))


def values(shapes: dict[str, tuple[int, ...]], seed: int = 0, strength: float = 0.5) -> dict[str, NDArray[np.float32]]:
    """Return an adapter's numbers for matrices of these shapes (by name, without ".weight"), and a mask embedding."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, (out, width) in shapes.items():
        found[f"{name}.lora_a"] = rng.standard_normal((RANK, width), np.float32) / np.float32(math.sqrt(width))
        found[f"{name}.lora_b"] = rng.standard_normal((out, RANK), np.float32) * np.float32(strength / math.sqrt(RANK))
    return found


def shapes_of(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the matrices that a llama-like network's adapter may change."""
    width, feed_forward = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or width // config["num_attention_heads"]
    queries, keys = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    own = {
        **{"self_attn.q_proj": (queries, width), "self_attn.k_proj": (keys, width), "self_attn.v_proj": (keys, width)},
        **{"self_attn.o_proj": (width, queries), "mlp.gate_proj": (feed_forward, width)},
        **{"mlp.up_proj": (feed_forward, width), "mlp.down_proj": (width, feed_forward)},
    }
    layers = range(config["num_hidden_layers"])
    return {f"model.layers.{i}.{name}": shape for i in layers for name, shape in own.items()}


def checkpoint(
    tensors: dict[str, NDArray[np.float32]], *, kind: str = "diffusion", path: str = "tiny.gguf", **filling: Any
) -> AdapterCheckpoint:
    """Return an adapter of these numbers as if it were read from a file."""
    own = {name: raw_tensor(name, x) for name, x in tensors.items()}
    target = DrafterTarget("vocabulary", "llama", 97, 48, 2)
    how = MaskFilling(**{"mask_token": 96, "block": 4, **filling}) if kind == "diffusion" else None
    return AdapterCheckpoint(Path(path), kind, "tiny", target, RANK, SCALE, how, own)


def adapter_on(runner: Runner, config: dict[str, Any], **fields: Any) -> Adapter:
    """Return a random adapter on a tiny runner's network."""
    mask = {"mask_embedding": np.random.default_rng(9).standard_normal(config["hidden_size"], np.float32)}
    return build(checkpoint(values(shapes_of(config)) | mask, **fields), runner.model)


def write(path: Path, tensors: dict[str, NDArray[np.float32]], entries: dict[str, Any]) -> Path:
    """Write an adapter's file: entries without "adapter."."""
    writer = gguf.GGUFWriter(path, "outpace-adapter")
    for name, value in entries.items():
        key = f"adapter.{name}"
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
    for name, x in tensors.items():
        writer.add_tensor(name, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def entries_of(**changed: Any) -> dict[str, Any]:
    """Return the entries of a tiny adapter's file."""
    return {
        **{"kind": "diffusion", "context": "base", "rank": RANK, "scale": SCALE},
        **{"mask_token": 96, "block": 4, "shift": 1},
        **{"target.name": "tiny", "target.fingerprint": "00", "target.vocabulary": "v", "target.model_type": "llama"},
        **{"target.vocab_size": 97, "target.width": 48, "target.num_layers": 2},
    } | changed
