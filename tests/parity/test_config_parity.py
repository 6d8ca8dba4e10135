"""What a key means that is absent, and what null means, is what the networks of transformers make of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from outpace.errors import WeightsError
from outpace.models import build, normalise, sizes
from outpace.models.architecture import architecture_of
from outpace.models.select import select, tensors
from outpace.ops.reference import ReferenceOps
from outpace.types import Segment
from tests.tiny import raw_tensor

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


# -- further architectures, by what their networks compute -------------------------------------------

SMALL = {
    **{"vocab_size": 97, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5},
    **{"rope_theta": 1000.0, "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False},
    **{"rope_scaling": None, "pad_token_id": 0},
}
OWN: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        **{"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 9.0, "sliding_window": 8},
        **{"layer_types": ["full_attention", "sliding_attention"], "final_logit_softcapping": 2.0},
        **{"rope_local_base_freq": 50.0, "attn_logit_softcapping": None, "use_bidirectional_attention": False},
    },
    "phi3": {"sliding_window": 8, "partial_rotary_factor": 0.5, "original_max_position_embeddings": 32},
    "smollm3": {"no_rope_layers": [1, 0], "no_rope_layer_interval": 2, "use_sliding_window": False},
    "olmo2": {},
    "olmo3": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "granite": {
        **{"embedding_multiplier": 2.0, "attention_multiplier": 0.1, "residual_multiplier": 0.5},
        **{"logits_scaling": 3.0},
    },
    "glm4": {"partial_rotary_factor": 0.25},
    "gpt_oss": {
        **{"num_local_experts": 8, "num_experts_per_tok": 3, "layer_types": ["full_attention", "sliding_attention"]},
        **{"sliding_window": 8, "attention_bias": True, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    },
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 3, "sliding_window": 8},
    "qwen3_moe": {
        **{"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "norm_topk_prob": True},
        **{"decoder_sparse_step": 2, "mlp_only_layers": [0], "use_sliding_window": True, "sliding_window": 8},
    },
}
WITHOUT = [(model_type, key) for model_type, own in OWN.items() for key in SMALL | own if key != "pad_token_id"]
TOKENS = np.random.default_rng(0).integers(1, 97, 24).tolist()


def network_of(model_type: str, raw: dict[str, Any]) -> Any:
    """Return the network that transformers makes of a config; None where it makes none or cannot run it."""
    try:
        config = transformers.CONFIG_MAPPING[model_type](**raw)
        config._attn_implementation = "eager"
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            model(torch.tensor([TOKENS]), use_cache=False)
    except Exception:
        return None
    return model


@pytest.mark.parametrize(("model_type", "key"), WITHOUT)
@pytest.mark.parametrize("kind", ["absent", "null"])
def test_a_network_without_a_key_is_the_one_of_transformers(model_type: str, key: str, kind: str) -> None:
    raw = {name: value for name, value in (SMALL | OWN[model_type]).items() if name != key or kind == "null"}
    raw |= {key: None} if kind == "null" else {}
    try:
        config = normalise(raw | {"model_type": model_type}, "config.json")
    except WeightsError:
        config = None
    large = key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    if large or (key, kind) == ("max_position_embeddings", "null"):
        assert config is None  # required: a default would be a guess, and a context is needed
        return
    theirs = network_of(model_type, raw)
    assert (config is None) == (theirs is None)
    if config is None:
        return
    ops = ReferenceOps()
    ours = {architecture_of(config).folder_name(tensor.name): tensor.name for tensor in tensors(config)}
    found = {
        (own := ours.get(name, name)): raw_tensor(own, value.detach().numpy())
        for name, value in theirs.named_parameters()
    }
    model = build(config, select(found, config, "folder", "theirs"), ops)
    plan = ops.plan([Segment((0, 1), 0, TOKENS, num_scored=len(TOKENS))], 32)
    logits = ops.numpy(model.forward(plan, ops.kv_alloc(model.spec("f32"), 2))[0])
    with torch.no_grad():
        expected = theirs(torch.tensor([TOKENS]), use_cache=False).logits[0].numpy()
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()
