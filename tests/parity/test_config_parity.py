"""What a key means that is absent, and what null means, is what the networks of transformers make of it."""

from __future__ import annotations

from typing import Any

import pytest

from outpace.errors import WeightsError
from outpace.models import normalise, sizes

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
CONFIG: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": 128,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "partial_rotary_factor": 1.0,
    "use_sliding_window": True,
    "sliding_window": 8,
    "max_window_layers": 1,
    "layer_types": ["full_attention", "sliding_attention"],
}
KEYS = [key for key in CONFIG if key not in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")]
YARN = {"rope_type": "yarn", "factor": 4.0}
YARN_KEYS = {
    "original_max_position_embeddings": 16,
    "attention_factor": 2.0,
    "beta_fast": 4.0,
    "beta_slow": 2.0,
    "mscale": 2.0,
    "mscale_all_dim": 3.0,
    "truncate": True,
}


def theirs(model_type: str, raw: dict[str, Any]) -> dict[str, Any] | None:
    """Return what the network is made of; None where transformers cannot build it or run it."""
    try:
        config = getattr(transformers, f"{CLASSES[model_type]}Config")(**raw)
        model = getattr(transformers, f"{CLASSES[model_type]}ForCausalLM")(config)
        with torch.no_grad():
            model(torch.tensor([[1, 2, 3]]), use_cache=False)
    except Exception:
        return None
    layers = [layer.self_attn for layer in model.model.layers]
    windows = [
        getattr(layer, "sliding_window", config.sliding_window if model_type == "mistral" else None) for layer in layers
    ]
    return {
        "heads": (
            layers[0].q_proj.out_features // layers[0].head_dim,
            layers[0].k_proj.out_features // layers[0].head_dim,
        ),
        "head_width": layers[0].head_dim,
        "eps": model.model.norm.variance_epsilon,
        "context": config.max_position_embeddings,
        "windows": tuple(windows),
        "frequencies": pytest.approx(model.model.rotary_emb.inv_freq.tolist(), rel=1e-5),
        "rope_scale": pytest.approx(model.model.rotary_emb.attention_scaling),
        "tied": model.lm_head.weight is model.model.embed_tokens.weight,
    }


def ours(model_type: str, raw: dict[str, Any]) -> dict[str, Any] | None:
    try:
        config = sizes(normalise(raw | {"model_type": model_type}, "config.json"))
    except WeightsError:
        return None
    return {
        "heads": (config.num_heads, config.num_kv_heads),
        "head_width": config.head_width,
        "eps": config.eps,
        "context": config.context,
        "windows": config.windows,
        "frequencies": list(config.inv_freq),
        "rope_scale": config.rope_scale,
        "tied": config.tied,
    }


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in CONFIG.items() if name != key}


@pytest.mark.parametrize("model_type", CLASSES)
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("kind", ["absent", "null"])
@pytest.mark.parametrize("by_layer", [True, False])
def test_absent_and_null_keys_mean_what_they_mean_there(model_type: str, key: str, kind: str, by_layer: bool) -> None:
    raw = without(key) | ({} if kind == "absent" else {key: None})
    if not by_layer:
        raw.pop("layer_types", None)
    if key == "num_hidden_layers" or (key, kind) == ("max_position_embeddings", "null"):
        assert ours(model_type, raw) is None  # required: a default would be a guess, and a context is needed
        return
    assert ours(model_type, raw) == theirs(model_type, raw)


@pytest.mark.parametrize("model_type", CLASSES)
@pytest.mark.parametrize("key", YARN_KEYS)
@pytest.mark.parametrize("kind", ["absent", "null"])
def test_absent_and_null_options_of_yarn_mean_what_they_mean_there(model_type: str, key: str, kind: str) -> None:
    options = {name: value for name, value in YARN_KEYS.items() if name != key or kind == "null"}
    if kind == "null":
        options[key] = None
    raw = without("rope_scaling") | {"rope_scaling": YARN | options}
    assert (mine := ours(model_type, raw)) is not None
    assert mine == theirs(model_type, raw)
