"""Phi-3, Phi-3.5 and Phi-4 (mini): Llama with fused matrices; part of a head may turn; longrope for long contexts.

Longrope has two lists of factors: one for texts within the context of training, one for longer ones. Tokens keep their
keys here, so a network has one of both: the short one and that context, unless more positions are wanted.
"""

from __future__ import annotations

import math
from dataclasses import replace

from outpace.models.architecture import Architecture
from outpace.models.config import Config, ModelConfig
from outpace.models.gguf import numbers
from outpace.models.keys import biases, decoder, one_window_or_none
from outpace.models.tensors import Places, fused_attention, fused_mlp, pre_norms
from outpace.weights.gguf import GGUFFile
from outpace.weights.values import Values

ORIGINAL, FACTORS = "original_max_position_embeddings", {"short_factor": "rope_factors_short.weight"}
FACTORS["long_factor"] = "rope_factors_long.weight"


def config(source: Values) -> Config:
    """Return the checked config."""
    source.only("attention_bias", False, null=True)
    usual = decoder(
        source, context=4096, eps=1e-5, nulls=["num_key_value_heads"], rotary=1.0, ropes=("default", "longrope")
    )
    unused = None if usual["rope_scaling"] else 4096
    original = {ORIGINAL: source.count(ORIGINAL, 1 << 31, minimum=2, absent=4096, null=unused)}
    return usual | one_window_or_none(source) | biases(source, mlp=False) | original


def sizes(config: Config) -> ModelConfig:
    """Return the network's numbers."""
    scaling, original, longest = config["rope_scaling"], config[ORIGINAL], config["max_position_embeddings"]
    if scaling is None:
        return ModelConfig.from_hf(config)
    is_long = config.get("context", 0) > original
    factors = {"rope_type": "factors", "factors": scaling["long_factor" if is_long else "short_factor"]}
    context = longest if is_long else min(longest, original)
    stretched = max(longest / original, 1.0)
    scale = scaling.get("attention_factor", math.sqrt(1 + math.log(stretched) / math.log(original)))
    plain = ModelConfig.from_hf(config | {"rope_scaling": factors, "max_position_embeddings": context})
    return replace(plain, rope_scale=scale)


def layer(sizes: ModelConfig) -> Places:
    """Return the tensors of a layer."""
    return pre_norms(sizes) | fused_attention(sizes) | fused_mlp(sizes)


def from_gguf(file: GGUFFile, config: Config) -> Config:
    """Return the rope, where a file has factors for it."""
    if not file.tensors.keys() & set(FACTORS.values()):
        return {}
    attention = {"attention_factor": file.metadata.get("phi3.rope.scaling.attn_factor", 1.0)}
    return {"rope_scaling": {"rope_type": "longrope", **{k: numbers(file, n) for k, n in FACTORS.items()}, **attention}}


KEYS = {ORIGINAL: "rope.scaling.original_context_length", "sliding_window": "attention.sliding_window"}
KEYS["partial_rotary_factor"] = "rope.dimension_count"
ARCHITECTURE = Architecture(
    *("phi3", "phi3", config, layer, sizes), gguf_keys=KEYS, gguf_config=from_gguf, gguf_tensors=tuple(FACTORS.values())
)
