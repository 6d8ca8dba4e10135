"""Sampling from whole vocabularies: the shortcuts of the native sampler never change a token."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from outpace.ops.reference import ReferenceOps
from outpace.ops.sampling import SamplingBatch, SamplingRows
from outpace.types import SamplingParams

pytest.importorskip("outpace.ops.native._native")
from outpace.ops.native import NativeOps

NATIVE, REFERENCE = NativeOps(threads=2), ReferenceOps()
VOCABULARY = 5003


def logits(kind: str) -> NDArray[np.float32]:
    """Return three rows: peaked as a language model's are, flat, all equal, coarse (many ties), mostly impossible."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, VOCABULARY)).astype(np.float32)
    if kind == "peaked":
        return x * 2 + np.where(rng.random((3, VOCABULARY)) < 0.002, np.float32(9), np.float32(0))
    if kind == "equal":
        return np.full_like(x, 2.5)
    if kind == "coarse":
        return np.round(x * 2)
    if kind == "impossible":
        return np.where(rng.random((3, VOCABULARY)) < 0.999, np.float32(-np.inf), x)
    return x / 100 if kind == "flat" else x * 100


KINDS = ("peaked", "flat", "equal", "coarse", "impossible", "extreme")
FILTERS: list[dict[str, Any]] = [
    {},
    {"top_k": 50},
    {"top_k": 4000},
    {"top_p": 0.95},
    {"top_p": 0.3},
    {"min_p": 0.05},
    {"min_p": 1e-9},
    {"top_k": 100, "top_p": 0.8, "min_p": 0.02},
    {"top_p": 0.99, "min_p": 0.01},
    {"typical_p": 0.95},
    {"typical_p": 0.2},
    {"typical_p": 0.9, "top_k": 300, "top_p": 0.8, "min_p": 0.05},
    {"top_n_sigma": 1.0},
    {"top_n_sigma": 3.0, "top_p": 0.9},
    {"top_n_sigma": 4.0, "top_k": 20, "min_p": 0.01},
]


def batch(k: int, **given: Any) -> SamplingBatch:
    params, rows = SamplingParams(**given), SamplingRows()
    for i in range(3):
        rows.add(params, 2**40 + 17 * k + i, i, [1000 + i])
    return rows.build()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", FILTERS, ids=str)
def test_the_samples_are_those_of_the_reference(kind: str, given: dict[str, Any]) -> None:
    x = logits(kind)
    for temperature, k in itertools.product((0.8, 3.0), (1, 2, 9)):
        rows = batch(k, temperature=temperature, **given)
        found = NATIVE.sample(NATIVE.array(x), rows, k)
        assert found.dtype == np.int64
        assert found.tolist() == REFERENCE.sample(x, rows, k).tolist(), (temperature, k)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", FILTERS, ids=str)
def test_the_probabilities_are_those_of_the_reference(kind: str, given: dict[str, Any]) -> None:
    x = logits(kind)
    for temperature in (0.8, 3.0):
        rows = batch(1, temperature=temperature, **given)
        found, expected = NATIVE.probs(NATIVE.array(x), rows), REFERENCE.probs(x, rows)
        assert ((found > 0) == (expected > 0)).all()
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_are_those_of_the_reference(kind: str) -> None:
    x = logits(kind)
    for rows, k in itertools.product((SamplingBatch.greedy(3), batch(1, logit_bias={5: 0.0})), (1, 2, 9)):
        assert NATIVE.sample(NATIVE.array(x), rows, k).tolist() == REFERENCE.sample(x, rows, k).tolist()
        assert (NATIVE.probs(NATIVE.array(x), rows) == REFERENCE.probs(x, rows)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_most_likely_tokens_and_their_logprobs_are_those_of_the_reference(kind: str) -> None:
    x = logits(kind)
    for k in (1, 5, 700, VOCABULARY):
        found, expected = NATIVE.top_k(NATIVE.array(x), k), REFERENCE.top_k(x, k)
        assert found[0].tolist() == expected[0].tolist()
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)
    picked = [0, 17, VOCABULARY - 1]
    np.testing.assert_allclose(NATIVE.logprobs(NATIVE.array(x), picked), REFERENCE.logprobs(x, picked), rtol=1e-6)


def test_penalties_biases_and_masks_are_those_of_the_reference() -> None:
    mask = np.random.default_rng(1).integers(0, 2**32, -(-VOCABULARY // 32), dtype=np.uint32)
    given = {
        "repetition_penalty": 1.3,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "logit_bias": {3: 2.0, 99: -1.5},
    }
    greedy, given = given, given | {"top_p": 0.9}
    for temperature, use_mask in itertools.product((0.0, 0.7), (False, True)):
        params, rows = SamplingParams(temperature=temperature, **(given if temperature else greedy)), SamplingRows()
        for i in range(3):
            rows.add(
                params,
                i,
                0,
                [7, 8],
                prompt=range(0, 900, 7),
                output=[3, 99, 3],
                paths=[(5 + i,), (5 + i, 3)],
                masks=[mask, None] if use_mask else (),
            )
        x = logits("peaked")[[0, 0, 1, 1, 2, 2]]
        found = NATIVE.sample(NATIVE.array(x), rows.build())
        assert found.tolist() == REFERENCE.sample(x, rows.build()).tolist()


@pytest.mark.parametrize("size", [5, 7, 63, 66, 1023, 1090, 2048, 2049, 3137])
def test_a_vocabulary_may_end_anywhere_in_the_steps_of_a_search(size: int) -> None:
    x = logits("flat")[:, :size]
    for k in (1, 2, 5):
        rows = batch(k, temperature=1.0)
        assert NATIVE.sample(NATIVE.array(x), rows, k).tolist() == REFERENCE.sample(x, rows, k).tolist(), k


@pytest.mark.slow
def test_noise_over_a_whole_vocabulary_decides_as_the_reference_does_for_many_seeds() -> None:
    x = logits("peaked")[:1]
    for seed in range(300):
        rows = SamplingRows()
        rows.add(SamplingParams(temperature=1.0), seed * 2**33, 0, [seed])
        batch = rows.build()
        assert NATIVE.sample(NATIVE.array(x), batch, 3).tolist() == REFERENCE.sample(x, batch, 3).tolist()
