from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outpace.errors import WeightsError
from outpace.models import architectures, normalise
from tests.unit.weights.tiny import CONFIG

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def check(**changes: Any) -> dict[str, Any]:
    return normalise(CONFIG | changes, "config.json")


def test_what_is_left_out_gets_the_value_that_transformers_gives_it() -> None:
    short = {key: value for key, value in CONFIG.items() if key not in ("rope_theta", "tie_word_embeddings")}
    config = normalise(short, "config.json")
    assert (config["rope_theta"], config["tie_word_embeddings"], config["head_dim"]) == (10000.0, False, 16)
    del short["num_key_value_heads"]
    assert normalise(short, "config.json")["num_key_value_heads"] == 4


def test_the_result_has_the_same_keys_for_every_model_type_and_is_a_fixed_point() -> None:
    configs = [check(model_type=kind) for kind in ("llama", "mistral", "qwen2", "qwen3")]
    assert len({tuple(config) for config in configs}) == 1
    for config in configs:
        assert normalise(config, "again") == config or config["model_type"] == "qwen2"


def test_each_model_type_has_its_own_rule_for_windows() -> None:
    full, window = "full_attention", "sliding_attention"
    assert check(sliding_window=32)["layer_types"] == [full, full]
    assert check(sliding_window=32)["sliding_window"] is None
    mistral = check(model_type="mistral", sliding_window=32)
    assert (mistral["sliding_window"], mistral["layer_types"]) == (32, [window, window])
    assert check(model_type="mistral")["sliding_window"] == 4096
    assert check(model_type="mistral", sliding_window=None)["layer_types"] == [full, full]
    qwen = {"model_type": "qwen2", "sliding_window": 32, "max_window_layers": 1}
    assert check(**qwen)["sliding_window"] is None
    assert check(**qwen, use_sliding_window=True)["layer_types"] == [full, window]
    stated = check(**qwen, use_sliding_window=True, layer_types=[window, full])
    assert (stated["sliding_window"], stated["layer_types"]) == (32, [window, full])


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_a_window_of_null_is_no_window_and_an_absent_one_the_usual(model_type: str) -> None:
    qwen = {"model_type": model_type, "use_sliding_window": True, "max_window_layers": 0}
    assert check(**qwen, sliding_window=None)["sliding_window"] is None
    assert check(**qwen, sliding_window=None)["layer_types"] == ["full_attention"] * 2
    assert check(**qwen)["sliding_window"] == 4096
    with pytest.raises(WeightsError, match="max_window_layers is null"):
        check(**qwen | {"max_window_layers": None})
    assert check(**qwen | {"max_window_layers": None}, sliding_window=None)["sliding_window"] is None


def test_two_names_of_a_rope_type_must_agree() -> None:
    with pytest.raises(WeightsError, match="has rope_type 'linear' and type 'yarn': they must agree"):
        check(rope_scaling={"rope_type": "linear", "type": "yarn", "factor": 2.0})
    both = check(rope_scaling={"rope_type": "linear", "type": "linear", "factor": 2.0})
    assert both["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}


def test_errors_show_long_values_in_short() -> None:
    with pytest.raises(WeightsError) as caught:
        check(vocab_size=["x" * 10_000] * 1000, model_type="llama")
    assert len(str(caught.value)) < 300


def test_qwen2_always_has_biases_and_others_have_them_where_the_config_says_so() -> None:
    assert check(model_type="qwen2")["attention_bias"]
    assert not check(model_type="qwen3")["attention_bias"]
    assert check(model_type="qwen3", attention_bias=True)["attention_bias"]
    assert "mlp_bias" not in check(mlp_bias=None)
    assert check(mlp_bias=True)["mlp_bias"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma3_text", "hidden_activation": "gelu"}, "hidden_activation is 'gelu'"),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0, only None"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ({"model_type": "gemma3_text", "query_pre_attn_scalar": 0}, "query_pre_attn_scalar must be a number"),
        ({"model_type": "gemma3_text", "sliding_window_pattern": 0}, "sliding_window_pattern must be an integer"),
        ({"model_type": "glm4", "partial_rotary_factor": 0.01}, "partial_rotary_factor is 0.01"),
        ({"model_type": "glm4", "partial_rotary_factor": 1.5}, "partial_rotary_factor must be a number"),
        ({"model_type": "granite", "logits_scaling": 0.0}, "logits_scaling must be a number"),
        ({"model_type": "olmo2", "rope_scaling": {"type": "yarn", "factor": 2.0}}, "supported are default, linear"),
        ({"model_type": "phi3", "rope_scaling": {"type": "linear", "factor": 2.0}}, "supported are default, longrope"),
        (
            {"model_type": "phi3", "rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [1.0] * 8}},
            "has 1 short_factor, must have 8",
        ),
        ({"model_type": "smollm3", "no_rope_layers": [1, 2]}, "no_rope_layers must be a list of 2 of 0"),
        ({"model_type": "smollm3", "no_rope_layers": [1]}, "no_rope_layers must be a list of 2 of 0"),
        ({"model_type": "smollm3", "use_sliding_window": True}, "use_sliding_window is True"),
    ],
)
def test_what_an_architecture_does_not_support_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightsError, match=f"^config.json: .*{message}"):
        check(**{"head_dim": 16} | changes)


@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_rope_scalings_are_kept_as_transformers_defines_them(key: str) -> None:
    linear = check(rope_scaling={key: "linear", "factor": 2, "extra": None})
    assert linear["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert check(rope_scaling=LLAMA3)["rope_scaling"] == LLAMA3
    yarn = check(rope_scaling={key: "yarn", "factor": 4.0, "beta_fast": 16, "truncate": False})
    assert yarn["rope_scaling"] == {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0, "truncate": False}
    assert check(rope_scaling={key: "default"})["rope_scaling"] is None
    factors = {"rope_type": "factors", "factors": [1.0] * 8}
    assert check(rope_scaling=factors)["rope_scaling"] == factors


def test_rope_parameters_of_transformers_5_are_read() -> None:
    config = check(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0})
    assert (config["rope_theta"], config["rope_scaling"]) == (500.0, {"rope_type": "linear", "factor": 2.0})
    assert check(rope_parameters={"rope_type": "default", "rope_theta": 7})["rope_theta"] == 7.0


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"])
@pytest.mark.parametrize("value", [None, 0, -1, 1 << 40, 64.0, "64", True, [64], float("nan")])
def test_a_size_that_is_no_sensible_integer_is_an_error_that_names_it(key: str, value: object) -> None:
    with pytest.raises(WeightsError, match=f"^config.json: {key} "):
        check(**{key: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "supported are .*gemma3_text, .*llama, ministral3, mistral, .*qwen2, qwen3"),
        ({"model_type": None}, "model_type is None"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"num_key_value_heads": 3}, "num_attention_heads is 4, must be a multiple of the 3"),
        ({"num_attention_heads": 6, "num_key_value_heads": 2}, "hidden_size is 64, must be a multiple of the 6"),
        ({"head_dim": 15}, "head_dim is 15, must be even"),
        ({"head_dim": -2}, "head_dim must be an integer"),
        ({"rms_norm_eps": None}, "rms_norm_eps is null"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps must be a number"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps must be a number"),
        ({"rope_theta": -1.0}, "rope_theta must be a number"),
        ({"rope_theta": float("nan")}, "rope_theta must be a number"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"model_type": "mistral", "mlp_bias": True}, "mlp_bias is True"),
        ({"model_type": "mistral", "attention_bias": True}, "attention_bias is True, only False is supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window must be an integer"),
        ({"model_type": "qwen2", "layer_types": ["full_attention"]}, "layer_types must be a list of 2"),
        ({"model_type": "qwen2", "layer_types": ["sliding_attention"] * 2}, "layer_types must be a list of 2"),
        ({"rope_scaling": 2.0}, "rope_scaling must be an object"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling has rope_type 'dynamic', supported"),
        ({"rope_scaling": {"rope_type": ["linear"]}}, "rope_scaling has rope_type"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling: factor is missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "rope_scaling: factor must be a number"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta_fast": 2}}, "beta_fast would be ignored"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "low_freq_factor must be below high_freq_factor"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_slow": 40}}, "beta_slow must be below beta_fast"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": 1}}, "truncate must be true or false"),
        ({"rope_scaling": {"rope_type": "factors", "factors": [1.0]}}, "rope_scaling has 1 factors, must have 8"),
        ({"rope_scaling": {"rope_type": "factors", "factors": [0.0] * 8}}, "factors must be a list of positive"),
    ],
)
def test_a_config_that_cannot_work_is_an_error_that_names_the_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightsError, match=f"^config.json: .*{message}"):
        check(**changes)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["linear", "yarn"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "factor", "rope_type"]), inner)
    ),
    max_leaves=5,
)
KEYS = [
    *CONFIG,
    "partial_rotary_factor",
    "no_rope_layers",
    "query_pre_attn_scalar",
    "logits_scaling",
    "head_dim",
    "rope_scaling",
    "rope_parameters",
    "sliding_window",
    "use_sliding_window",
    "layer_types",
]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(KEYS), ANYTHING, max_size=3), st.sampled_from(list(architectures())))
def test_any_values_give_a_config_or_an_error(changes: dict[str, Any], model_type: str) -> None:
    try:
        config = check(**{"model_type": model_type} | changes)
    except WeightsError:
        return
    assert config["num_attention_heads"] % config["num_key_value_heads"] == 0
    assert len(config["layer_types"]) == config["num_hidden_layers"]
