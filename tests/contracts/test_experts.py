"""The contract of `experts`, for every implementation: right numbers, and bits that are a row's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.ops import random_tensor
from outpace.ops.formats import BLOCKS, dequantise
from outpace.ops.layers import Activation, Experts, Layer
from outpace.ops.protocol import Ops
from outpace.types import KVSpec
from tests.contracts.test_ops import BLOCK, TOLERANCE, close, one_layer, same
from tests.implementations import MAKERS
from tests.tiny import raw_tensor

NUM_EXPERTS, CHOSEN = 7, 3
Floats = NDArray[Any]


@pytest.fixture(scope="module", params=[(name, threads) for name in MAKERS for threads in (1, 3)], ids=str)
def ops(request: pytest.FixtureRequest) -> Ops:
    name, threads = request.param
    return MAKERS[name](threads)


class Lab:
    """Random experts, and the formulas of what they make of rows."""

    def __init__(self, width: int, inner: int, format: str = "F32", biases: bool = False) -> None:
        self._rng = np.random.default_rng(0)
        self.router = self._matrix(NUM_EXPERTS, width, "F32")
        self.gate, self.up = ([self._matrix(inner, width, format) for _ in range(NUM_EXPERTS)] for _ in range(2))
        self.down = [self._matrix(width, inner, format) for _ in range(NUM_EXPERTS)]
        self.biases = {}
        if biases:
            self.biases["router_bias"] = [self._vector(NUM_EXPERTS)]
            for name, size in (("gate_bias", inner), ("up_bias", inner), ("down_bias", width)):
                self.biases[name] = [self._vector(size) for _ in range(NUM_EXPERTS)]
        self.width = width

    def _matrix(self, out: int, width: int, format: str) -> Any:
        return raw_tensor("w", self._rng.standard_normal((out, width), np.float32) * 2 / np.sqrt(width), format)

    def _vector(self, size: int) -> Any:
        return raw_tensor("b", self._rng.standard_normal(size, np.float32))

    def rows(self, count: int) -> NDArray[np.float32]:
        return np.random.default_rng(1).standard_normal((count, self.width), np.float32)

    def layer(self, ops: Ops, is_normalised: bool = True, activation: Activation = "silu", **changes: Any) -> Layer:
        biases = {name: tuple(map(ops.vector, vectors)) for name, vectors in self.biases.items()}
        router_bias = biases.pop("router_bias", (None,))[0]
        experts = Experts(
            router=ops.pack(self.router),
            gate=tuple(map(ops.pack, self.gate)),
            up=tuple(map(ops.pack, self.up)),
            down=tuple(map(ops.pack, self.down)),
            num_chosen=CHOSEN,
            is_normalised=is_normalised,
            router_bias=router_bias,
            **biases,
        )
        dense = one_layer(ops, KVSpec(2, 1, 16, "f32", BLOCK), 1)
        own = replace(experts, **changes)
        return ops.layer(replace(dense, gate=None, up=None, down=None, experts=own, activation=activation))

    def formula(self, x: Floats, is_normalised: bool, activation: Activation) -> Floats:
        rows = x.astype(np.float64)
        logits = rows @ dequantise(self.router).T.astype(np.float64) + self._bias("router_bias", 0)
        result = np.zeros_like(rows)
        for row, total, own in zip(rows, result, logits, strict=True):
            chosen = sorted(range(NUM_EXPERTS), key=lambda e: (-own[e], e))[:CHOSEN]
            terms = np.exp(own)
            terms /= terms[chosen].sum() if is_normalised else terms.sum()
            for e in chosen:
                gate = dequantise(self.gate[e]) @ row + self._bias("gate_bias", e)
                up = dequantise(self.up[e]) @ row + self._bias("up_bias", e)
                if activation == "clamped_swiglu":
                    gate, up = np.minimum(gate, 7), np.clip(up, -7, 7) + 1
                inner = gate / (1 + np.exp((-1.702 if activation == "clamped_swiglu" else -1) * gate)) * up
                total += terms[e] * (dequantise(self.down[e]) @ inner + self._bias("down_bias", e))
        return result

    def _bias(self, name: str, index: int) -> Any:
        return dequantise(self.biases[name][index]) if name in self.biases else 0.0


@pytest.mark.parametrize("is_normalised", [True, False])
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("activation", ["silu", "clamped_swiglu"])
def test_a_row_is_the_weighted_sum_of_its_experts(
    ops: Ops, is_normalised: bool, biases: bool, activation: Activation
) -> None:
    lab = Lab(80, 24, biases=biases)
    x = 3 * lab.rows(9)
    found = ops.numpy(ops.experts(ops.array(x), lab.layer(ops, is_normalised, activation)))
    assert close(found, lab.formula(x, is_normalised, activation), 1e-5)


@pytest.mark.parametrize("format", TOLERANCE)
def test_experts_may_be_stored_in_any_format(ops: Ops, format: str) -> None:
    lab = Lab(64, 96, format)
    x = lab.rows(5)
    found = ops.numpy(ops.experts(ops.array(x), lab.layer(ops)))
    assert close(found, lab.formula(x, True, "silu"), 2 * TOLERANCE[format])


@pytest.mark.parametrize("format", [format for format, block in BLOCKS.items() if block.size > 1])
def test_experts_may_be_stored_in_any_blocks(ops: Ops, format: str) -> None:
    """Rounded activations move a row by little, and neighbours by no bit."""
    lab = Lab(256, 256)
    for part in (lab.gate, lab.up, lab.down):
        part[:] = [random_tensor("w", format, (256, 256), seed) for seed in range(NUM_EXPERTS)]
    x, layer = lab.rows(6), lab.layer(ops)
    found = ops.numpy(ops.experts(ops.array(x), layer))
    assert close(found, lab.formula(x, True, "silu"), 0.05)
    assert same(ops.numpy(ops.experts(ops.array(x[3:4]), layer)), found[3:4])


@pytest.mark.parametrize("format", ["F32", "BF16", "Q8_0"])
def test_a_row_has_the_bits_that_it_has_alone(ops: Ops, format: str) -> None:
    """Whatever its neighbours choose, and however many of them choose what it chooses."""
    lab = Lab(64, 288, format, biases=True)
    layer, x = lab.layer(ops), lab.rows(40)
    alone = np.concatenate([ops.numpy(ops.experts(ops.array(x[i : i + 1]), layer)) for i in range(40)])
    assert same(ops.numpy(ops.experts(ops.array(x), layer)), alone)
    order = np.random.default_rng(2).permutation(40)
    assert same(ops.numpy(ops.experts(ops.array(np.ascontiguousarray(x[order])), layer)), alone[order])
    crowd = np.repeat(x[:3], [1, 20, 2], axis=0)
    assert same(ops.numpy(ops.experts(ops.array(crowd), layer)), np.repeat(alone[:3], [1, 20, 2], axis=0))


def test_experts_that_no_row_chose_are_not_read(ops: Ops) -> None:
    """They may hold anything."""
    lab = Lab(64, 32)
    x = lab.rows(2)
    x[1] = x[0]
    expected = ops.numpy(ops.experts(ops.array(x), lab.layer(ops)))
    logits = dequantise(lab.router) @ x[0]
    for e in np.argsort(-logits)[CHOSEN:]:
        for matrices in (lab.gate, lab.up, lab.down):
            matrices[e] = raw_tensor("w", np.full(matrices[e].shape, np.nan, np.float32))
    assert same(ops.numpy(ops.experts(ops.array(x), lab.layer(ops))), expected)


def test_of_experts_that_are_liked_equally_the_first_are_chosen(ops: Ops) -> None:
    lab = Lab(64, 32)
    lab.router = raw_tensor("w", np.zeros((NUM_EXPERTS, 64), np.float32))
    x = lab.rows(4)
    found = ops.numpy(ops.experts(ops.array(x), lab.layer(ops)))
    assert close(found, lab.formula(x, True, "silu"), 1e-5)


def test_a_row_that_is_no_number_spoils_no_other(ops: Ops) -> None:
    lab = Lab(64, 32)
    x, layer = lab.rows(6), lab.layer(ops)
    expected = ops.numpy(ops.experts(ops.array(x), layer))
    x[2], x[4] = np.nan, np.inf
    with np.errstate(invalid="ignore", over="ignore"):
        found = ops.numpy(ops.experts(ops.array(x), layer))
    kept = [0, 1, 3, 5]
    assert same(found[kept], expected[kept])
    assert np.isnan(found[2]).all()


def test_all_experts_may_be_chosen(ops: Ops) -> None:
    lab = Lab(64, 32)
    x = lab.rows(3)
    dense = ops.numpy(ops.experts(ops.array(x), lab.layer(ops, num_chosen=NUM_EXPERTS)))
    over_all = ops.numpy(ops.experts(ops.array(x), lab.layer(ops, is_normalised=False, num_chosen=NUM_EXPERTS)))
    assert close(dense, over_all, 1e-6)
