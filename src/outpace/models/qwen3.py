"""Qwen3: Llama with an RMS norm on each head of queries and keys; some layers may have a sliding window."""

from __future__ import annotations

from outpace.models.architecture import Architecture
from outpace.models.config import Config, ModelConfig
from outpace.models.keys import biases, decoder, windows_from_a_layer_on
from outpace.models.tensors import Places, attention, gated_mlp, head_norms, pre_norms
from outpace.weights.values import Values


def config(source: Values) -> Config:
    """Return the checked config."""
    usual = decoder(source, context=32768, kv_heads=32, head_width=128, nulls=["num_key_value_heads"])
    return usual | windows_from_a_layer_on(source) | biases(source, mlp=False)


def layer(sizes: ModelConfig) -> Places:
    """Return the tensors of a layer."""
    return pre_norms(sizes) | attention(sizes) | head_norms(sizes) | gated_mlp(sizes)


ARCHITECTURE = Architecture("qwen3", "qwen3", config, layer)
