"""Mixtral: Mistral whose layers have experts instead of one MLP, with names of its own for them."""

from __future__ import annotations

from dataclasses import replace

from outpace.models.architecture import Architecture
from outpace.models.config import Config, ExpertSizes, ModelConfig
from outpace.models.experts import experts as matrices
from outpace.models.keys import biases, decoder, experts, one_window_or_none
from outpace.models.tensors import Places, attention, pre_norms
from outpace.weights.values import Values

COUNT, CHOSEN = "num_local_experts", "num_experts_per_tok"
KEYS = {COUNT: "expert_count", CHOSEN: "expert_used_count"}  # our key -> the metadata key of GGUF files
NAMES = {"mlp.": "block_sparse_moe.", "gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def config(source: Values) -> Config:
    """Return the checked config."""
    source.only("attention_bias", False, null=True)
    usual = decoder(source, context=131072, kv_heads=8, eps=1e-5, theta=1e6)
    own = experts(source, COUNT, 8, CHOSEN, 2)
    return usual | one_window_or_none(source) | biases(source, mlp=False) | own


def sizes(config: Config) -> ModelConfig:
    """Return the network's numbers."""
    layers = frozenset(range(config["num_hidden_layers"]))
    own = ExpertSizes(config[COUNT], config[CHOSEN], config["intermediate_size"], True, layers)
    return replace(ModelConfig.from_hf(config), experts=own)


def layer(sizes: ModelConfig) -> Places:
    """Return the tensors of a layer."""
    return pre_norms(sizes) | attention(sizes) | matrices(sizes)


ARCHITECTURE = Architecture(
    *("mixtral", "llama", config, layer, sizes),
    gguf_mark=KEYS[COUNT],
    gguf_keys=KEYS,
    gguf_pairs=True,
    usual_eos=2,
    folder_names=NAMES,
)
