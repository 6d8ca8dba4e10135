"""Qwen3 MoE: Qwen3 whose layers have experts instead of one MLP, all of them or some."""

from __future__ import annotations

from dataclasses import replace

from outpace.models.architecture import Architecture
from outpace.models.config import Config, ExpertSizes, ModelConfig
from outpace.models.experts import experts as matrices
from outpace.models.keys import biases, decoder, experts, layer_indices, no_windows, one_window
from outpace.models.tensors import Places, attention, gated_mlp, head_norms, pre_norms
from outpace.weights.gguf import GGUFFile
from outpace.weights.values import Values

ONLY, STEP, NORM, WIDTH = "mlp_only_layers", "decoder_sparse_step", "norm_topk_prob", "moe_intermediate_size"
KEYS = {  # our key -> the metadata key of GGUF files
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    WIDTH: "expert_feed_forward_length",
}


def config(source: Values) -> Config:
    """Return the checked config."""
    windows = one_window if source.flag("use_sliding_window", absent=False, null=False) else no_windows
    usual = decoder(source, context=32768, kv_heads=4, nulls=())
    return {
        **(usual | windows(source) | biases(source, mlp=False)),
        **experts(source, "num_experts", 128, "num_experts_per_tok", 8),
        WIDTH: source.count(WIDTH, 1 << 20, absent=768, null=usual["intermediate_size"]),
        NORM: source.flag(NORM, absent=False, null=False),
        STEP: source.count(STEP, 1 << 10, absent=1),
        ONLY: layer_indices(source, ONLY),
    }


def sizes(config: Config) -> ModelConfig:
    """Return the network's numbers."""
    every = range(config[STEP] - 1, config["num_hidden_layers"], config[STEP])
    layers = frozenset(every) - {*config[ONLY]}
    own = ExpertSizes(config["num_experts"], config["num_experts_per_tok"], config[WIDTH], config[NORM], layers)
    return replace(ModelConfig.from_hf(config), experts=own if layers else None)


def layer(sizes: ModelConfig) -> Places:
    """Return the tensors of a layer without experts."""
    return _half(sizes) | gated_mlp(sizes)


def expert_layer(sizes: ModelConfig) -> Places:
    """Return the tensors of a layer with experts."""
    return _half(sizes) | matrices(sizes)


def _half(sizes: ModelConfig) -> Places:
    return pre_norms(sizes) | attention(sizes) | head_norms(sizes)


def from_gguf(file: GGUFFile, config: Config) -> Config:
    """Return what files do not say, as llama.cpp has it: weights that add up to 1."""
    return {NORM: True}


ARCHITECTURE = Architecture(
    *("qwen3_moe", "qwen3moe", config, layer, sizes, expert_layer), gguf_keys=KEYS, gguf_config=from_gguf
)
