"""Gemma 3 (text): norms before and behind both halves of a layer, heads normed, windows and a rope of their own."""

from __future__ import annotations

import math
from dataclasses import replace

from outpace.models.architecture import Architecture
from outpace.models.config import Config, ModelConfig
from outpace.models.gguf import layer_types
from outpace.models.keys import SIZE_KEYS, biases, decoder, windows_by_pattern
from outpace.models.tensors import Places, attention, gated_mlp, head_norms, norms
from outpace.weights.gguf import GGUFFile
from outpace.weights.values import Values

GELU = ("hidden_activation", "gelu_pytorch_tanh")
KEYS = {  # our key -> the metadata key of GGUF files
    "sliding_window": "attention.sliding_window",
    "rope_local_base_freq": "rope.freq_base_swa",
    "final_logit_softcapping": "final_logit_softcapping",
}


def config(source: Values) -> Config:
    """Return the checked config."""
    source.only("use_bidirectional_attention", False, null=True)
    source.only("attn_logit_softcapping", None, null=True)
    capped = source.is_given("final_logit_softcapping")
    period = source.count("sliding_window_pattern", 1 << 10, absent=6)
    usual = decoder(source, context=131072, kv_heads=4, head_width=256, theta=1e6, tied=True, activation=GELU, nulls=())
    return {
        **usual,
        **windows_by_pattern(source, period),
        **biases(source, mlp=False),
        "query_pre_attn_scalar": source.number("query_pre_attn_scalar", 1e6, absent=256.0),
        "rope_local_base_freq": source.number("rope_local_base_freq", 1e12, absent=10000.0),
        "final_logit_softcapping": source.number("final_logit_softcapping", 1e6) if capped else None,
    }


def sizes(config: Config) -> ModelConfig:
    """Return the network's numbers."""
    plain = ModelConfig.from_hf(config)
    return replace(
        plain.with_near_rope(config["rope_local_base_freq"]),
        activation="gelu_tanh",
        attention_scale=config["query_pre_attn_scalar"] ** -0.5,
        embedding_scale=math.sqrt(plain.width),
        logit_cap=config["final_logit_softcapping"],
    )


def layer(sizes: ModelConfig) -> Places:
    """Return the tensors of a layer."""
    before = {"attn_norm": "input_layernorm", "mlp_norm": "pre_feedforward_layernorm"}
    behind = {"attn_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm"}
    return norms(sizes, **before, **behind) | attention(sizes) | head_norms(sizes) | gated_mlp(sizes)


def from_gguf(file: GGUFFile, config: Config) -> Config:
    """Return the queries' scale, which files do not say: heads' width, but in the model of 62 layers another one."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    is_largest = config["num_hidden_layers"] == 62 and type(hidden) is int and type(heads) is int and heads > 0
    scalar = hidden / heads if is_largest else config.get("head_dim")
    return {"query_pre_attn_scalar": scalar, **layer_types(file, "gemma3")}


ARCHITECTURE = Architecture(
    *("gemma3_text", "gemma3", config, layer, sizes),
    gguf_keys=KEYS,
    gguf_config=from_gguf,
    norms_less_one=True,
    usual=dict(zip(SIZE_KEYS, (262208, 2304, 9216, 26, 8), strict=True)),
)
