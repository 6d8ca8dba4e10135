from __future__ import annotations

from typing import Any

import pytest

from outpace.drafters.layouts.decoder import Decoder
from outpace.errors import WeightsError
from tests.published import flat_config

CONFIG = flat_config("plain")


def test_the_sizes_of_a_layer_are_read() -> None:
    decoder = Decoder.read(CONFIG, "a file")
    assert (decoder.vocab_size, decoder.width, decoder.feed_forward_width, decoder.num_layers) == (31, 16, 24, 1)
    assert (decoder.num_heads, decoder.num_kv_heads, decoder.head_width, decoder.context) == (4, 2, 8, 64)
    assert (decoder.eps, decoder.rope_theta, decoder.rope_scaling) == (1e-5, 10000.0, None)
    assert (decoder.has_biases, decoder.has_head_norms, decoder.windows) == (False, False, (None,))


def test_a_layer_has_the_norms_of_its_type_and_the_biases_that_it_says() -> None:
    assert Decoder.read(CONFIG | {"model_type": "qwen3"}, "a file").has_head_norms
    biased = Decoder.read(CONFIG | {"model_type": "qwen2", "attention_bias": True}, "a file")
    assert (biased.has_head_norms, biased.has_biases) == (False, True)


def test_a_window_holds_for_the_layers_that_are_said_to_slide() -> None:
    kinds = ["sliding_attention", "full_attention"]
    config = CONFIG | {"num_hidden_layers": 2, "layer_types": kinds, "sliding_window": 7}
    assert Decoder.read(config, "a file").windows == (7, None)
    assert Decoder.read(config | {"sliding_window": None}, "a file").windows == (None, None)
    assert Decoder.read(CONFIG | {"sliding_window": 7}, "a file").windows == (None,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt_oss"}, "model_type is 'gpt_oss', supported are llama, mistral, qwen2, qwen3"),
        ({"hidden_size": 1 << 40}, "hidden_size must be an integer in"),
        ({"hidden_size": "16"}, "hidden_size must be an integer in"),
        ({"num_attention_heads": 3}, "num_attention_heads is 3, must be a multiple of the 2"),
        ({"head_dim": 7}, "head_dim is 7, must be even"),
        ({"mlp_bias": True}, "mlp_bias is True, only False is supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, only 1.0 is supported"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', only 'silu' is supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_type 'dynamic', supported are"),
        ({"layer_types": ["sliding"]}, "layer_types must be a list of 1 of full_attention"),
        ({"layer_types": ["sliding_attention"], "sliding_window": 0}, "sliding_window must be an integer in"),
        ({"attention_bias": 1}, "attention_bias must be true or false"),
    ],
)
def test_what_no_layer_can_be_is_refused_with_the_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightsError, match=f"a file: .*{message}"):
        Decoder.read(CONFIG | change, "a file")
