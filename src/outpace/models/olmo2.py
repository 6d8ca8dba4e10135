"""OLMo 2: norms behind both halves of a layer and none before, queries and keys normed over their whole width."""

from __future__ import annotations

from outpace.models.architecture import Architecture
from outpace.models.config import Config, ModelConfig
from outpace.models.keys import biases, decoder, no_windows
from outpace.models.tensors import Places, attention, gated_mlp, norms, wide_norms
from outpace.weights.values import Values


def config(source: Values) -> Config:
    """Return the checked config."""
    return (
        decoder(source, context=2048, eps=1e-5, nulls=["num_key_value_heads"], ropes=("default", "linear"))
        | no_windows(source)
        | biases(source, mlp=False)
    )


def layer(sizes: ModelConfig) -> Places:
    """Return the tensors of a layer."""
    behind = norms(sizes, attn_post_norm="post_attention_layernorm", mlp_post_norm="post_feedforward_layernorm")
    return behind | attention(sizes) | wide_norms(sizes) | gated_mlp(sizes)


ARCHITECTURE = Architecture("olmo2", "olmo2", config, layer)
