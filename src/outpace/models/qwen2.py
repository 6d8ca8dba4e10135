"""Qwen2 (also Qwen2.5): Llama with biases on queries, keys and values; some layers may have a sliding window."""

from __future__ import annotations

from dataclasses import replace

from outpace.models.architecture import Architecture
from outpace.models.config import Config, ModelConfig
from outpace.models.keys import decoder, windows_from_a_layer_on
from outpace.models.tensors import Places, attention, gated_mlp, pre_norms
from outpace.weights.values import Values


def config(source: Values) -> Config:
    """Return the checked config. Files do not say that it has biases: it always has."""
    source.only("mlp_bias", False, null=True)
    usual = decoder(source, context=32768, kv_heads=32, nulls=["num_key_value_heads"])
    return usual | windows_from_a_layer_on(source) | {"attention_bias": True}


def sizes(config: Config) -> ModelConfig:
    """Return the network's numbers."""
    return replace(ModelConfig.from_hf(config), output_bias=False)


def layer(sizes: ModelConfig) -> Places:
    """Return the tensors of a layer."""
    return pre_norms(sizes) | attention(sizes) | gated_mlp(sizes)


ARCHITECTURE = Architecture("qwen2", "qwen2", config, layer, sizes)
