"""Qwen2 (also Qwen2.5): Llama with biases on queries, keys and values; some layers may have a sliding window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from outpace.models.config import ModelConfig
from outpace.models.transformer import Transformer, assemble
from outpace.ops.protocol import Ops
from outpace.types import RawTensor


def build(config: Mapping[str, Any], tensors: Mapping[str, RawTensor], ops: Ops) -> Transformer:
    """Return the network of a checked config and its tensors."""
    return assemble(ModelConfig.from_hf(config), tensors, ops, qkv_bias=True)
