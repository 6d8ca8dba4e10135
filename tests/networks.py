"""Tiny networks of every architecture, with what their configs can switch on: what tests hold against `transformers`.

An architecture without an entry is there with the tiny config alone. Names begin with the architecture's.
"""

from __future__ import annotations

from typing import Any

from outpace.models import architectures

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
SLIDING = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}

_FEATURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, one kv head, wide heads": ("llama", {"num_key_value_heads": 1, "head_dim": 32}),
    "llama, every head its own": ("llama", {"num_key_value_heads": 4}),
    "mistral": ("mistral", {}),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2, window in one layer": ("qwen2", SLIDING),
    "qwen3": ("qwen3", {}),
    "qwen3, window in one layer": ("qwen3", SLIDING),
    "llama, linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.5}}),
    "llama, linear, old key": ("llama", {"rope_scaling": {"type": "linear", "factor": 2.5}}),
    "llama, llama3": ("llama", {"rope_scaling": LLAMA3, "rope_theta": 500000.0}),
    "qwen2, yarn": ("qwen2", {"rope_scaling": YARN}),
    "llama, yarn, attention factor": ("llama", {"rope_scaling": YARN | {"attention_factor": 0.7}}),
    "llama, yarn, mscale": ("llama", {"rope_scaling": YARN | {"mscale": 0.707, "mscale_all_dim": 1.4}}),
    "llama, yarn, betas, not truncated": (
        "llama",
        {"rope_scaling": YARN | {"beta_fast": 16.0, "beta_slow": 2.0, "truncate": False}},
    ),
}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = _FEATURES | {
    model_type: (model_type, {}) for model_type in architectures() if model_type not in _FEATURES
}
