"""The rotary frequencies by hand; `tests/parity` compares the scalings with transformers."""

import math

import numpy as np
import pytest

from outpace.errors import WeightsError
from outpace.models.rope import frequencies, rotary
from outpace.weights.trained import Entries


def test_without_scaling_frequencies_fall_geometrically() -> None:
    inv_freq, scale = frequencies(10_000.0, 8, {}, 2048)
    np.testing.assert_allclose(inv_freq, [1, 0.1, 0.01, 0.001])
    assert scale == 1


def test_linear_scaling_divides_all() -> None:
    inv_freq, _ = frequencies(10_000.0, 4, {"rope_type": "linear", "factor": 4.0}, 2048)
    np.testing.assert_allclose(inv_freq, [0.25, 0.0025])


def test_factors_divide_each_pair_by_its_own() -> None:
    inv_freq, _ = frequencies(10_000.0, 4, {"rope_type": "factors", "factors": [2.0, 8.0]}, 2048)
    np.testing.assert_allclose(inv_freq, [0.5, 0.00125])


def test_llama3_keeps_fast_pairs_and_divides_slow_ones() -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    }
    plain, _ = frequencies(10_000.0, 64, {}, 2048)
    inv_freq, _ = frequencies(10_000.0, 64, scaling, 2048)
    turns = 512 * plain / (2 * math.pi)
    np.testing.assert_allclose(inv_freq[turns > 4], plain[turns > 4])
    np.testing.assert_allclose(inv_freq[turns < 1], plain[turns < 1] / 8)
    between = (turns > 1) & (turns < 4)
    assert between.any()
    assert (inv_freq[between] < plain[between]).all()
    assert (inv_freq[between] > plain[between] / 8).all()


def test_yarn_scales_attention_by_the_logarithm_of_its_factor() -> None:
    _, scale = frequencies(10_000.0, 64, {"rope_type": "yarn", "factor": 4.0}, 2048)
    assert scale == pytest.approx(0.1 * math.log(4) + 1)
    _, given = frequencies(10_000.0, 64, {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5}, 2048)
    assert given == 1.5


def test_an_unknown_scaling_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(WeightsError, match=r"'longrope'.*linear, llama3, yarn"):
        frequencies(10_000.0, 64, {"rope_type": "longrope"}, 2048)


def test_rotary_frequencies_are_those_of_the_file_where_it_states_them() -> None:
    assert rotary(Entries({}, "a file"), 8) == (None, 1.0)
    stated = {"rope_theta": 16.0, "context": 64}
    assert rotary(Entries(stated, "a file"), 8) == ((1.0, 0.5, 0.25, 0.125), 1.0)
    halved = stated | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    assert rotary(Entries(halved, "a file"), 8) == ((0.5, 0.25, 0.125, 0.0625), 1.0)
    for head_width in (0, 1, 7):
        with pytest.raises(WeightsError, match="head_width must be even"):
            rotary(Entries(stated, "a file"), head_width)
