"""Mixtures of experts (Shazeer et al. 2017, arXiv:1701.06538), one row at a time: it knows of no other row's choice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from outpace.ops.layers import Activation, Experts, Vector, Weight
from outpace.ops.reference.activation import activate

Floats = NDArray[Any]
Product = Callable[[Floats, Weight], Floats]


def run(x: Floats, experts: Experts, activation: Activation, product: Product) -> Floats:
    """Return the weighted sum of each row's chosen experts, [T, D]: see `Experts`."""
    logits = _biased(product(x, experts.router), experts.router_bias)
    result = np.empty_like(x)
    for row in range(len(x)):
        result[row] = _run_one(x[row : row + 1], logits[row], experts, activation, product)
    return result


def choose(logits: Floats, num_chosen: int, is_normalised: bool) -> tuple[NDArray[np.int64], Floats]:
    """Return a row's chosen experts, the best first, and their weights; logits [E]."""
    chosen = np.argsort(-logits, kind="stable")[:num_chosen]
    terms = np.exp(logits - logits.max())
    return chosen, terms[chosen] / np.sum(terms[chosen] if is_normalised else terms)


def _run_one(x: Floats, logits: Floats, experts: Experts, activation: Activation, product: Product) -> Floats:
    chosen, weights = choose(logits, experts.num_chosen, experts.is_normalised)
    total: Floats = np.zeros_like(x[0])
    for expert, weight in zip(chosen.tolist(), weights, strict=True):
        gate = _biased(product(x, experts.gate[expert]), _of(experts.gate_bias, expert))
        up = _biased(product(x, experts.up[expert]), _of(experts.up_bias, expert))
        out = _biased(product(activate(gate, up, activation), experts.down[expert]), _of(experts.down_bias, expert))
        total = total + weight * out[0]
    return total


def _of(biases: tuple[Vector, ...], expert: int) -> Vector | None:
    return biases[expert] if biases else None


def _biased(x: Floats, bias: Vector | None) -> Floats:
    return x if bias is None else np.asarray(x + cast(Floats, bias))
