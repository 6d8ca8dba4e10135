"""Llama (also SmolLM2, TinyLlama, Granite code): the plain network; some have biases everywhere."""

from __future__ import annotations

from outpace.models import gguf
from outpace.models.architecture import Architecture
from outpace.models.config import Config, ModelConfig
from outpace.models.keys import biases, decoder, no_windows
from outpace.models.tensors import Places, attention, gated_mlp, pre_norms
from outpace.weights.values import Values


def config(source: Values) -> Config:
    """Return the checked config."""
    return decoder(source, context=2048) | no_windows(source) | biases(source, mlp=True)


def layer(sizes: ModelConfig) -> Places:
    """Return the tensors of a layer."""
    return pre_norms(sizes) | attention(sizes) | gated_mlp(sizes)


ARCHITECTURE = Architecture("llama", "llama", config, layer, gguf_config=gguf.biases, gguf_pairs=True, usual_eos=2)
