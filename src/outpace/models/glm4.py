"""GLM-4 (0414): norms before and behind both halves of a layer; half of each head turns, neighbours as pairs."""

from __future__ import annotations

from dataclasses import replace

from outpace.models import gguf
from outpace.models.architecture import Architecture
from outpace.models.config import Config, ModelConfig
from outpace.models.keys import biases, decoder, no_windows
from outpace.models.tensors import Places, attention, fused_mlp, norms
from outpace.weights.values import Values


def config(source: Values) -> Config:
    """Return the checked config."""
    usual = decoder(source, context=131072, kv_heads=2, head_width=128, nulls=(), eps=1.5625e-7, rotary=0.5)
    return usual | no_windows(source) | biases(source, mlp=False, attention=True)


def sizes(config: Config) -> ModelConfig:
    """Return the network's numbers."""
    return replace(ModelConfig.from_hf(config), output_bias=False)


def layer(sizes: ModelConfig) -> Places:
    """Return the tensors of a layer."""
    before = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    behind = {"attn_post_norm": "post_self_attn_layernorm", "mlp_post_norm": "post_mlp_layernorm"}
    return norms(sizes, **before, **behind) | attention(sizes) | fused_mlp(sizes)


ARCHITECTURE = Architecture(
    "glm4",
    "glm4",
    config,
    layer,
    sizes,
    gguf_keys={"partial_rotary_factor": "rope.dimension_count"},
    gguf_config=gguf.bias_of_queries,
    pairs=True,
    gguf_pairs=True,
)
