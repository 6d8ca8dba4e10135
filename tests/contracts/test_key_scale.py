"""Keys with a large constant part, for every ops implementation: what the factors of `key_scale` do and leave alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from outpace.models import Transformer
from outpace.ops.protocol import Ops
from outpace.types import KVFormat, Segment
from tests.constant_keys import with_constant_keys, without_factors
from tests.implementations import MAKERS

FORMATS: tuple[KVFormat, ...] = ("f32", "bf16", "int8")
TOKENS = np.random.default_rng(0).integers(0, 97, 150).tolist()


@pytest.fixture(scope="module", params=list(MAKERS))
def ops(request: pytest.FixtureRequest) -> Ops:
    return MAKERS[str(request.param)](1)


@pytest.fixture(scope="module")
def model(ops: Ops) -> Transformer:
    return with_constant_keys(ops)


@pytest.fixture(scope="module")
def unscaled(model: Transformer) -> Transformer:
    return without_factors(model)


def logits(model: Transformer, kv: KVFormat, cuts: Sequence[int] = ()) -> NDArray[np.float32]:
    """Return the logits of all of TOKENS, run in pieces."""
    ops, spec = model.ops, model.spec(kv)
    cache, edges = ops.kv_alloc(spec, 5), [0, *cuts, len(TOKENS)]
    rows = []
    for a, b in itertools.pairwise(edges):
        segment = Segment(range(5), a, TOKENS[a:b], num_scored=b - a)
        rows.append(ops.numpy(model.forward(ops.plan([segment], spec.block_size), cache)[0]))
    return np.concatenate(rows)


def divergence(p: NDArray[np.float32], q: NDArray[np.float32]) -> float:
    """Return the mean Kullback-Leibler divergence of rows of logits, in nats."""
    logp, logq = (
        x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (p.astype(np.float64), q.astype(np.float64))
    )
    return float((np.exp(logp) * (logp - logq)).sum(axis=1).mean())


def test_int8_keys_with_a_large_constant_part_keep_the_rest(model: Transformer, unscaled: Transformer) -> None:
    truth = logits(model, "f32")
    assert divergence(truth, logits(unscaled, "int8")) > 0.02
    assert divergence(truth, logits(model, "int8")) < 0.001


@pytest.mark.parametrize("kv", ["f32", "bf16"])
def test_factors_change_no_bit_of_a_cache_of_floats(model: Transformer, unscaled: Transformer, kv: KVFormat) -> None:
    assert (logits(model, kv).view(np.uint32) == logits(unscaled, kv).view(np.uint32)).all()


@pytest.mark.parametrize("kv", FORMATS)
def test_a_token_alone_has_the_bits_that_it_has_in_a_prefill(model: Transformer, kv: KVFormat) -> None:
    together, one_by_one = logits(model, kv), logits(model, kv, range(1, len(TOKENS)))
    assert (together.view(np.uint32) == one_by_one.view(np.uint32)).all()


def test_queries_are_multiplied_after_they_have_turned(model: Transformer, unscaled: Transformer) -> None:
    ops, spec = model.ops, model.spec("int8")
    q, k, v = (
        ops.array(np.random.default_rng(i).standard_normal((9, heads * spec.head_width), np.float32))
        for i, heads in enumerate((4, 2, 2))
    )
    plan = ops.plan([Segment([0], 0, [0] * 9, num_scored=9)], spec.block_size)
    scaled, plain = (
        ops.numpy(ops.rope_store(q, k, v, network.layers[0].handle, ops.kv_alloc(spec, 1), plan))
        for network in (model, unscaled)
    )
    times = (scaled / plain).reshape(9, 2, 2, spec.head_width)  # of each query head of each key head
    assert set(np.unique(times)) == {1.0, *np.unique(times[times > 1])}
    assert (np.log2(times) == np.rint(np.log2(times))).all()
    assert (times == times[:1, :, :1]).all(), "the same factor for every token and head of a group"
    assert (times > 1).sum(axis=3).tolist() == [[[4, 4], [4, 4]]] * 9
