from __future__ import annotations

import numpy as np
import pytest

from outpace.ops.reference.activation import activate


def test_numbers_far_out_become_their_limits_without_a_warning() -> None:
    far = np.array([-1e30, -200, 0, 200], np.float32)
    one = np.ones_like(far)
    for activation in ("silu", "gelu_tanh"):
        np.testing.assert_array_equal(activate(far, one, activation), [0, 0, 0, 200])  # type: ignore[arg-type]


def test_a_clamped_gate_lets_no_more_through_than_its_limit() -> None:
    """gpt-oss: both sides are cut off at 7, the gate only above; 1 is added to what it lets through."""
    gate, up = np.array([9.0, 7.0, -9.0, 2.0]), np.array([-8.0, -7.0, 0.5, 9.0])
    sigmoid = 1 / (1 + np.exp(-1.702 * np.array([7.0, 7.0, -9.0, 2.0])))
    expected = np.array([7.0, 7.0, -9.0, 2.0]) * sigmoid * np.array([-6.0, -6.0, 1.5, 8.0])
    assert activate(gate, up, "clamped_swiglu") == pytest.approx(expected)
