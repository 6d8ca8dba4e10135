from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from outpace.models.key_scale import key_scale
from outpace.ops.formats import dequantise
from tests.tiny import raw_tensor

HEADS, WIDTH, SIZE = 2, 16, 64  # key heads, their width, the model's width


def matrix(seed: int = 0, format: str = "F32") -> NDArray[np.float32]:
    x: NDArray[np.float32] = np.random.default_rng(seed).standard_normal((HEADS * WIDTH, SIZE), np.float32) / 8
    return x


def factors(bias: NDArray[np.float32], format: str = "F32", norm: float = 1.0) -> NDArray[np.float32] | None:
    found = key_scale(
        raw_tensor("b", bias),
        raw_tensor("w", matrix(), format),
        raw_tensor("n", np.full(SIZE, norm, np.float32)),
        HEADS,
    )
    return None if found is None else dequantise(found).reshape(HEADS, WIDTH)


def with_bias(value: float, head: int = 1, channel: int = 3) -> NDArray[np.float32]:
    bias = np.zeros((HEADS, WIDTH), np.float32)
    bias[head, channel] = value
    return bias.reshape(-1)


def test_a_bias_that_does_not_stick_out_needs_no_factor() -> None:
    assert factors(np.ones(HEADS * WIDTH, np.float32)) is None
    assert factors(np.zeros(HEADS * WIDTH, np.float32)) is None


@pytest.mark.parametrize("format", ["F32", "BF16", "Q8_0"])
def test_both_channels_of_a_pair_that_sticks_out_have_its_factor_and_no_others(format: str) -> None:
    found = factors(with_bias(-130.0), format)
    assert found is not None
    expected = np.ones((HEADS, WIDTH), np.float32)
    expected[1, [3, 3 + WIDTH // 2]] = 32.0  # 130 / (4 standard deviations of 1), to the nearest power of two
    assert (found == expected).all()


def test_what_counts_is_the_length_of_the_pair_and_what_the_norm_lets_through() -> None:
    bias = with_bias(100.0) + with_bias(100.0, channel=3 + WIDTH // 2)
    found, halved = factors(bias), factors(bias, norm=2.0)
    assert found is not None
    assert halved is not None
    assert found.max() == 32.0
    assert halved.max() == 16.0


def test_the_rows_may_come_without_a_norm() -> None:
    found = key_scale(raw_tensor("b", with_bias(130.0)), raw_tensor("w", matrix()), None, HEADS)
    assert found is not None
    assert dequantise(found).max() == 32.0


@pytest.mark.parametrize("value", [np.inf, np.nan, 3e38])
def test_a_damaged_bias_gives_no_factor_that_is_not_a_power_of_two(value: float) -> None:
    found = factors(with_bias(value))
    assert found is None or (found == np.where(found == 1, 1, 2.0**16)).all()


def test_rows_of_zeros_give_no_factors() -> None:
    nothing = raw_tensor("w", np.zeros((HEADS * WIDTH, SIZE), np.float32))
    assert key_scale(raw_tensor("b", with_bias(5.0)), nothing, None, HEADS) is None
