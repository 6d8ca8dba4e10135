"""OLMo 3: OLMo 2 with a window in three of four layers (or as listed); rope is scaled only in the others."""

from __future__ import annotations

from outpace.models.architecture import Architecture
from outpace.models.config import Config, ModelConfig
from outpace.models.gguf import layer_types
from outpace.models.keys import biases, decoder, windows_by_pattern
from outpace.models.tensors import Places, attention, gated_mlp, norms, wide_norms
from outpace.weights.gguf import GGUFFile
from outpace.weights.values import Values

WINDOW = "attention.sliding_window"  # what tells its GGUF files from OLMo 2's


def config(source: Values) -> Config:
    """Return the checked config."""
    return (
        decoder(source, context=2048, eps=1e-5, nulls=["num_key_value_heads"])
        | windows_by_pattern(source, 4)
        | biases(source, mlp=False)
    )


def sizes(config: Config) -> ModelConfig:
    """Return the network's numbers."""
    return ModelConfig.from_hf(config).with_near_rope(config["rope_theta"])


def layer(sizes: ModelConfig) -> Places:
    """Return the tensors of a layer."""
    behind = norms(sizes, attn_post_norm="post_attention_layernorm", mlp_post_norm="post_feedforward_layernorm")
    return behind | attention(sizes) | wide_norms(sizes) | gated_mlp(sizes)


def from_gguf(file: GGUFFile, config: Config) -> Config:
    """Return which layers have a window."""
    return layer_types(file, "olmo2")


KEYS = {"sliding_window": WINDOW}
ARCHITECTURE = Architecture(
    "olmo3", "olmo2", config, layer, sizes, gguf_mark=WINDOW, gguf_keys=KEYS, gguf_config=from_gguf
)
