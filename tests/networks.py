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
GEMMA = {
    **{"head_dim": 16, "sliding_window": 24, "num_hidden_layers": 6, "query_pre_attn_scalar": 24.0},
    **{"hidden_activation": "gelu_pytorch_tanh", "rope_theta": 1e6, "rope_local_base_freq": 5000.0},
    **{"tie_word_embeddings": True},
}
GRANITE = {
    **{"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.6, "logits_scaling": 1.7},
    **{"tie_word_embeddings": True},
}
LONGROPE = {
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 2.0],
        "long_factor": [1.0, 2.0, 4.0, 8.0, 16.0, 32.0],
    }
}
MINISTRAL = {
    "rope_parameters": YARN | {"rope_theta": 10000.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.4}
}
SLIDING = {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}

_FEATURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, one kv head, wide heads": ("llama", {"num_key_value_heads": 1, "head_dim": 32}),
    "llama, every head its own": ("llama", {"num_key_value_heads": 4}),
    "mistral": ("mistral", {}),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "mixtral": ("mixtral", {}),
    "mixtral, window, one expert, wide heads": (
        "mixtral",
        {"sliding_window": 24, "num_experts_per_tok": 1, "head_dim": 16, "tie_word_embeddings": True},
    ),
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
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen3, biases": ("qwen3", {"attention_bias": True}),
    "gemma3_text": ("gemma3_text", GEMMA),
    "gemma3_text, soft cap, linear, listed": (
        "gemma3_text",
        GEMMA
        | {
            "num_hidden_layers": 2,
            "final_logit_softcapping": 3.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "layer_types": ["full_attention", "sliding_attention"],
            "tie_word_embeddings": False,
            "attention_bias": True,
        },
    ),
    "glm4": ("glm4", {}),
    "glm4, no biases, three quarters turn": (
        "glm4",
        {"attention_bias": False, "partial_rotary_factor": 0.75, "head_dim": 16},
    ),
    "gpt_oss": ("gpt_oss", {"num_hidden_layers": 3, "rope_scaling": YARN | {"truncate": False}}),
    "gpt_oss, listed, no biases": (
        "gpt_oss",
        {"attention_bias": False, "layer_types": ["full_attention", "sliding_attention"], "num_experts_per_tok": 1},
    ),
    "granite": ("granite", GRANITE),
    "granite, biases": ("granite", GRANITE | {"attention_bias": True, "mlp_bias": True, "rope_scaling": LLAMA3}),
    "ministral3": ("ministral3", MINISTRAL),
    "ministral3, plain rope, window, tied": (
        "ministral3",
        {
            **{"sliding_window": 24, "tie_word_embeddings": True},
            "rope_parameters": {
                **{"rope_type": "default", "rope_theta": 5000.0},
                **{"original_max_position_embeddings": 50, "llama_4_scaling_beta": 1.5},
            },
        },
    ),
    "olmo2": ("olmo2", {}),
    "olmo2, biases": ("olmo2", {"attention_bias": True, "rope_scaling": {"type": "linear", "factor": 2.5}}),
    "olmo3": ("olmo3", {"sliding_window": 24, "num_hidden_layers": 4, "rope_scaling": YARN}),
    "olmo3, listed, biases": (
        "olmo3",
        {"sliding_window": 24, "attention_bias": True, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    "phi3": ("phi3", {}),
    "phi3, window, part turns": ("phi3", {"sliding_window": 24, "partial_rotary_factor": 0.5}),
    "phi3, longrope, long": ("phi3", LONGROPE | {"original_max_position_embeddings": 64, "context": 2048}),
    "phi3, longrope, short": ("phi3", LONGROPE | {"original_max_position_embeddings": 1024}),
    "phi3, longrope, part turns": (
        "phi3",
        {
            **LONGROPE,
            "original_max_position_embeddings": 1024,
            "hidden_size": 64,
            "partial_rotary_factor": 0.75,
        },
    ),
    "qwen3_moe": ("qwen3_moe", {"norm_topk_prob": True}),
    "qwen3_moe, some layers, biases, window": (
        "qwen3_moe",
        {
            **{"num_hidden_layers": 5, "decoder_sparse_step": 2, "mlp_only_layers": [3], "attention_bias": True},
            **{"use_sliding_window": True, "sliding_window": 24, "rope_scaling": YARN, "num_experts_per_tok": 3},
        },
    ),
    "smollm3": ("smollm3", {"num_hidden_layers": 4}),
    "smollm3, listed, biases": (
        "smollm3",
        {"no_rope_layers": [0, 1], "attention_bias": True, "mlp_bias": True, "rope_scaling": YARN},
    ),
}
MASKED = ("Dream", "llada")  # fill masks: transformers has none of them, tests/parity/test_masked_diffusion_parity.py
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = _FEATURES | {
    model_type: (model_type, {}) for model_type in architectures() if model_type not in (*_FEATURES, *MASKED)
}
