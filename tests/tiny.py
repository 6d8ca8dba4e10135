"""Tiny random models, the same ones for the same seed: small enough for any test, lively enough for varied text."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outpace import models
from outpace.models import Transformer
from outpace.models.select import select, tensors
from outpace.ops.protocol import Ops
from outpace.types import RawTensor

_OWN: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 24},
    "qwen3": {"head_dim": 16},
    "glm4": {"head_dim": 12},
    "ministral3": {"head_dim": 12},
    "gpt_oss": {"head_dim": 16, "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 24},
    "llada": {"mask_token_id": 96},
    "Dream": {"mask_token_id": 96},
    "mixtral": {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen3_moe": {"head_dim": 16, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
}


def tiny_config(model_type: str = "llama", **overrides: Any) -> dict[str, Any]:
    """Return the config.json of a tiny model, as Hugging Face would write it (an override of None stays null)."""
    config = {
        "model_type": model_type,
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    return config | _OWN.get(model_type, {}) | overrides


def tiny_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of each tensor of the model, as a folder holds it."""
    return {
        tensor.stored_name("folder"): tensor.stored_shape("folder")
        for tensor in tensors(models.normalise(config, "tiny"))
    }


def tiny_values(config: dict[str, Any], seed: int = 0, spread: float = 2.0) -> dict[str, NDArray[np.float32]]:
    """Return the model's numbers. Each tensor depends only on the seed, its name, its shape and the spread.

    A matrix keeps the size of what it multiplies at spread 1. At 2, attention and logits get opinions, so that greedy
    text is not one token for ever; but rounding grows from layer to layer too.
    """
    return {name: _values(name, shape, seed, spread) for name, shape in tiny_shapes(config).items()}


def _values(name: str, shape: tuple[int, ...], seed: int, spread: float) -> NDArray[np.float32]:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    x = rng.standard_normal(shape, np.float32)
    if name.endswith("norm.weight"):
        return 1 + x / 10
    if name.endswith("bias"):
        return x / 2
    if name == "model.embed_tokens.weight" or x.ndim == 1:
        return x
    inputs = shape[1]  # in a stack of matrices, too: [count, in, out]
    return x * np.float32(spread / math.sqrt(inputs))


def tiny_tensors(
    config: dict[str, Any], seed: int = 0, format: str = "F32", spread: float = 2.0
) -> dict[str, RawTensor]:
    """Return the model's tensors; matrices in `format` (F32, F16, BF16 or Q8_0), vectors in F32.

    Matrices that a folder stacks are float32 where `format` has blocks, which cannot be taken apart.
    """

    def own(x: NDArray[np.float32], name: str) -> str:
        is_matrix = x.ndim > 1 and not name.endswith("bias")
        return format if is_matrix and not (x.ndim == 3 and format == "Q8_0") else "F32"

    return {name: raw_tensor(name, x, own(x, name)) for name, x in tiny_values(config, seed, spread).items()}


def raw_tensor(name: str, x: NDArray[np.float32], format: str = "F32") -> RawTensor:
    """Return numbers as a file would store them, rounded to the format."""
    rows = np.ascontiguousarray(x, np.float32).reshape(-1, x.shape[-1])
    return RawTensor(name, _ENCODERS[format](rows), format, x.shape)


def _bf16(rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    bits = rows.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").view(np.uint8)


def _q8_0(rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    blocks = rows.reshape(len(rows), -1, 32)
    scale = (np.abs(blocks).max(axis=2, keepdims=True) / 127).astype("<f2")
    safe = np.where(scale == 0, 1, scale).astype(np.float32)
    numbers = np.rint(blocks / safe).clip(-127, 127).astype(np.int8)
    return np.concatenate([scale.view(np.uint8), numbers.view(np.uint8)], axis=2).reshape(len(rows), -1)


_ENCODERS = {
    "F32": lambda rows: rows.astype("<f4").view(np.uint8),
    "F16": lambda rows: rows.astype("<f2").view(np.uint8),
    "BF16": _bf16,
    "Q8_0": _q8_0,
}


def tiny_model(
    ops: Ops, model_type: str = "llama", seed: int = 0, format: str = "F32", **overrides: Any
) -> Transformer:
    """Return a tiny network, packed by `ops`."""
    return built(ops, tiny_config(model_type, **overrides), seed, format)


def built(ops: Ops, config: dict[str, Any], seed: int = 0, format: str = "F32", spread: float = 2.0) -> Transformer:
    """Return the network of a config (its `context` is how many positions are wanted) and the tiny model's numbers."""
    checked = models.normalise(config, "tiny")
    return models.build(
        checked,
        select(tiny_tensors(config, seed, format, spread), checked, "folder", "tiny"),
        ops,
        config.get("context"),
    )
