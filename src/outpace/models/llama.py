"""Llama (also SmolLM2, TinyLlama): the plain network."""

from __future__ import annotations

from outpace.models.architecture import Architecture
from outpace.models.config import Config, ModelConfig
from outpace.models.keys import decoder, no_windows
from outpace.models.tensors import Places, attention, gated_mlp, pre_norms
from outpace.weights.values import Values


def config(source: Values) -> Config:
    """Return the checked config."""
    source.only("attention_bias", False, null=True)
    source.only("mlp_bias", False, null=True)
    source.only("partial_rotary_factor", 1.0)
    return decoder(source, context=2048) | no_windows(source) | {"attention_bias": False}


def layer(sizes: ModelConfig) -> Places:
    """Return the tensors of a layer."""
    return pre_norms(sizes) | attention(sizes) | gated_mlp(sizes)


ARCHITECTURE = Architecture("llama", "llama", config, layer, gguf_pairs=True, usual_eos=2)
