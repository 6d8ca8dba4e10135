from __future__ import annotations

import numpy as np
import pytest

from outpace.ops.reference.rope import RopeTable


def test_a_pair_is_turned_by_its_position_times_its_frequency_and_scaled() -> None:
    table = RopeTable(np.array([1.0, 0.25]), 2.0, 100, np.float64)
    x = np.array([[[1.0, 0.0, 0.0, 1.0]]])  # the pairs (x0, x2) and (x1, x3)
    (((a, b, c, d),),) = table.rotate(x, np.array([6])).tolist()
    assert (a, c) == pytest.approx((2 * np.cos(6.0), 2 * np.sin(6.0)))
    assert (b, d) == pytest.approx((-2 * np.sin(1.5), 2 * np.cos(1.5)))


def test_every_token_and_head_is_turned_by_the_position_of_its_own_token() -> None:
    table = RopeTable(np.array([1.0]), 1.0, 100, np.float64)
    turned = table.rotate(np.tile([1.0, 0.0], (2, 3, 1)), np.array([5, 0]))
    assert turned[0] == pytest.approx(np.tile([np.cos(5), np.sin(5)], (3, 1)))
    assert turned[1] == pytest.approx(np.tile([1.0, 0.0], (3, 1)))


def test_a_rotary_table_does_not_depend_on_the_order_of_its_making() -> None:
    inv_freq = 10_000.0 ** (-np.arange(16) / 16)
    x = np.random.default_rng(0).standard_normal((2, 3, 32), np.float32)
    straight, stepwise = (RopeTable(inv_freq, 1.0, 4096, np.float32) for _ in range(2))
    for position in (3, 1023, 1024, 2500):
        stepwise.rotate(x, np.array([0, position]))
    far = np.array([4095, 3000])
    assert straight.rotate(x, far).tobytes() == stepwise.rotate(x, far).tobytes()


def test_angles_are_rounded_only_once_however_far_a_text_has_come() -> None:
    """Angles in float32 would be off by 0.004 at this position; cos and sin may be off by half a last place."""
    position, frequency = 100_001, 0.7
    table = RopeTable(np.array([frequency]), 1.0, position + 1, np.float32)
    ((turned,),) = table.rotate(np.array([[[1.0, 0.0]]], np.float32), np.array([position]))
    angle = position * frequency
    assert turned == pytest.approx([np.cos(angle), np.sin(angle)], abs=1e-7)


def test_a_position_past_the_context_is_our_own_bug() -> None:
    table = RopeTable(np.ones(2), 1.0, 10, np.float32)
    with pytest.raises(AssertionError, match="past the context"):
        table.rotate(np.zeros((1, 1, 4), np.float32), np.array([10]))
