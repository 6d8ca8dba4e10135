"""What lies between a gated MLP's products: the gate's activation, times what it lets through."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outpace.ops.layers import Activation

_ALPHA, _LIMIT = 1.702, 7.0  # of clamped_swiglu: gpt-oss has no others

Floats = NDArray[Any]


def activate(gate: Floats, up: Floats, activation: Activation) -> Floats:
    """Return activation(gate) * up, number by number; the formulas are those of `Ops.gate`."""
    if activation == "silu":
        return np.asarray(_swish(gate, 1.0) * up)
    if activation == "gelu_tanh":
        return np.asarray(_gelu_tanh(gate) * up)
    one = gate.dtype.type
    gate, up = np.minimum(gate, one(_LIMIT)), np.clip(up, one(-_LIMIT), one(_LIMIT))
    return np.asarray(_swish(gate, _ALPHA) * (up + one(1)))


def _swish(x: Floats, alpha: float) -> Floats:
    with np.errstate(over="ignore"):  # exp(-x) may be inf: x / inf is the 0 that it should be
        return np.asarray(x / (1 + np.exp(x.dtype.type(-alpha) * x)))


def _gelu_tanh(x: Floats) -> Floats:
    """Return x (1 + tanh(y)) / 2 as x / (1 + exp(-2 y)), the same function."""
    one = x.dtype.type
    with np.errstate(over="ignore"):
        twice = one(2 * math.sqrt(2 / math.pi)) * (x + one(0.044715) * x * x * x)
        return np.asarray(x / (1 + np.exp(-twice)))
