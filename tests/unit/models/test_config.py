from __future__ import annotations

from typing import Any

import pytest

from outpace.models import ModelConfig, normalise, sizes
from tests.tiny import tiny_config

SLIDING = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}


def config(model_type: str = "llama", **overrides: Any) -> ModelConfig:
    return sizes(normalise(tiny_config(model_type, **overrides), "tiny"))


def test_every_size_is_read_under_our_name() -> None:
    sizes = config("qwen3", head_dim=20, num_hidden_layers=3, rms_norm_eps=1e-6, tie_word_embeddings=True)
    found = (sizes.vocab_size, sizes.width, sizes.feed_forward_width, sizes.num_layers, sizes.context)
    assert found == (97, 48, 80, 3, 2048)
    assert (sizes.num_heads, sizes.num_kv_heads, sizes.head_width) == (4, 2, 20)
    assert (sizes.model_type, sizes.eps, sizes.tied) == ("qwen3", 1e-6, True)
    assert len(sizes.windows) == 3


def test_a_head_has_one_rotary_frequency_for_each_pair_of_channels() -> None:
    sizes = config(rope_theta=100.0)
    assert len(sizes.inv_freq) == sizes.head_width // 2 == 6
    assert sizes.inv_freq[0] == 1.0
    assert sizes.inv_freq[3] == pytest.approx(100.0 ** (-3 / 6))
    assert sizes.rope_scale == 1.0


def test_rope_scaling_reaches_the_frequencies_and_their_factor() -> None:
    linear = config(rope_scaling={"rope_type": "linear", "factor": 4.0})
    assert linear.inv_freq == pytest.approx([x / 4 for x in config().inv_freq])
    yarn = config(rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512})
    assert yarn.rope_scale > 1.0


@pytest.mark.parametrize(
    ("overrides", "windows", "max_window"),
    [
        ({"model_type": "mistral"}, (24, 24), 24),
        ({"model_type": "llama"}, (None, None), None),
        ({"model_type": "qwen2", **SLIDING}, (None, 9), None),
    ],
)
def test_one_layer_that_reads_everything_keeps_everything(
    overrides: dict[str, Any], windows: tuple[int | None, ...], max_window: int | None
) -> None:
    sizes = config(**overrides)
    assert (sizes.windows, sizes.max_window) == (windows, max_window)
