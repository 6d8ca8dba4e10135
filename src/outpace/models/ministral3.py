"""Ministral 3 (also Mistral Small 3.1 in GGUF files): Llama whose queries grow with their position; YaRN."""

from __future__ import annotations

from dataclasses import replace

from outpace.errors import WeightsError
from outpace.models.architecture import Architecture
from outpace.models.config import Config, ModelConfig
from outpace.models.keys import SIZE_KEYS, biases, decoder, one_window_or_none
from outpace.models.mistral import layer
from outpace.ops.layers import QueryGrowth
from outpace.weights.gguf import GGUFFile
from outpace.weights.values import Values

RATE, LENGTH, ALL = "llama_4_scaling_beta", "original_max_position_embeddings", "mscale_all_dim"
KEYS = {RATE: "attention.temperature_scale", ALL: "rope.scaling.yarn_log_multiplier"}  # ours -> those of GGUF files
ROPE = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, LENGTH: 16384, "mscale": 1.0, ALL: 1.0, RATE: 0.1}
SIZES = dict(zip(SIZE_KEYS, (131072, 4096, 14336, 34, 32), strict=True))


def config(source: Values) -> Config:
    """Return the checked config."""
    source.only("attention_bias", False, null=True)
    key = "rope_scaling" if source.is_given("rope_scaling") else "rope_parameters"
    rope = source.object(key) if source.is_given(key) else source.inner(key, ROPE)
    rate = 0.0 if rope.raw.get(RATE) == 0 else rope.number(RATE, 1e3)
    length = rope.count(LENGTH, 1 << 31)
    has_length = rope.raw.get("rope_type", rope.raw.get("type")) in ("yarn", "llama3")
    own = {RATE, "max_position_embeddings"} | (set() if has_length else {LENGTH})
    plain = {name: value for name, value in rope.raw.items() if name not in own}
    full = replace(source, raw={**source.raw, "rope_parameters": None, key: plain})
    usual = decoder(full, context=262144, kv_heads=8, head_width=128, eps=1e-5)
    grows = {RATE: rate or None, LENGTH: length, ALL: (usual["rope_scaling"] or {}).get(ALL)}
    return usual | one_window_or_none(source) | biases(source, mlp=False) | grows


def sizes(config: Config) -> ModelConfig:
    """Return the network's numbers."""
    growth = QueryGrowth(config[RATE], config[LENGTH]) if config[RATE] else None
    return replace(ModelConfig.from_hf(config), query_growth=growth)


def from_gguf(file: GGUFFile, config: Config) -> Config:
    """Return the rope with what files say of it elsewhere; as in llama.cpp, queries grow by the original context."""
    rope = config["rope_scaling"] or {"rope_type": "default"}
    if config.get(ALL) and "attention_factor" in rope:
        raise WeightsError(f"{file.path}: metadata mistral3.rope.scaling.attn_factor beside yarn_log_multiplier")
    temperature = {"mscale": 1.0, ALL: config[ALL]} if config.get(ALL) else {}
    return {
        "rope_scaling": {LENGTH: config["max_position_embeddings"], RATE: config.get(RATE, 0.0), **rope, **temperature}
    }


ARCHITECTURE = Architecture(
    *("ministral3", "mistral3", config, layer, sizes),
    gguf_keys=KEYS,
    gguf_config=from_gguf,
    gguf_pairs=True,
    usual_eos=2,
    usual=SIZES,
)
