"""Mistral: Llama with a sliding window, the same in every layer."""

from __future__ import annotations

from outpace.models.architecture import Architecture
from outpace.models.config import Config, ModelConfig
from outpace.models.keys import SIZE_KEYS, biases, decoder, one_window
from outpace.models.tensors import Places, attention, gated_mlp, pre_norms
from outpace.weights.values import Values


def config(source: Values) -> Config:
    """Return the checked config."""
    source.only("attention_bias", False, null=True)
    return decoder(source, context=131072, kv_heads=8) | one_window(source) | biases(source, mlp=False)


def layer(sizes: ModelConfig) -> Places:
    """Return the tensors of a layer."""
    return pre_norms(sizes) | attention(sizes) | gated_mlp(sizes)


_WINDOW = "attention.sliding_window"  # what tells its GGUF files from Llama's

ARCHITECTURE = Architecture(
    "mistral",
    "llama",
    config,
    layer,
    gguf_mark=_WINDOW,
    gguf_keys={"sliding_window": _WINDOW},
    gguf_pairs=True,
    usual_eos=2,
    usual=dict(zip(SIZE_KEYS, (32000, 4096, 14336, 32, 32), strict=True)),
)
