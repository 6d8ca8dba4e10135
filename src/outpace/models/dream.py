"""Dream (arXiv:2508.15487): Qwen2's network that fills masks, every token seeing the whole text; the shift is kept."""

from __future__ import annotations

from dataclasses import replace

from outpace.models import gguf
from outpace.models.architecture import Architecture
from outpace.models.config import Config, ModelConfig
from outpace.models.keys import decoder, no_windows
from outpace.models.tensors import Places, attention, gated_mlp, pre_norms
from outpace.types import MaskFilling
from outpace.weights.values import Values


def config(source: Values) -> Config:
    """Return the checked config. Files do not say that it has biases: it always has."""
    source.only("mlp_bias", False, null=True)
    source.only("use_sliding_window", False, null=True)
    usual = decoder(source, context=32768, kv_heads=32, nulls=["num_key_value_heads"]) | no_windows(source)
    return usual | {"attention_bias": True, "mask_token_id": source.count("mask_token_id", usual["vocab_size"] - 1)}


def sizes(config: Config) -> ModelConfig:
    """Return the network's numbers."""
    return replace(ModelConfig.from_hf(config), output_bias=False)


def layer(sizes: ModelConfig) -> Places:
    """Return the tensors of a layer."""
    return pre_norms(sizes) | attention(sizes) | gated_mlp(sizes)


def filling(config: Config) -> MaskFilling:
    """Return how it fills masks: the whole canvas as one block, in the order of entropy, by its own schedule."""
    return MaskFilling(config["mask_token_id"], block=0, shift=1, sees_all=True, schedule="linear", by_entropy=True)


ARCHITECTURE = Architecture("Dream", "dream", config, layer, sizes, filling=filling, gguf_config=gguf.mask_token)
