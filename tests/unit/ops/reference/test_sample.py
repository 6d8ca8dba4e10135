"""What only the reference's sampler promises; the meaning of every option is in `tests/contracts/test_sampling.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from outpace.errors import SamplingError, UsageError
from outpace.ops.philox import gumbel
from outpace.ops.reference.sample import logprobs, probs, sample, top_k
from outpace.ops.sampling import SamplingBatch, SamplingRows
from outpace.types import SamplingParams

LOGITS = np.random.default_rng(0).standard_normal((3, 50), np.float32) * 3


def batch(*params: dict[str, Any], **given: Any) -> SamplingBatch:
    rows = SamplingRows()
    for row, one in enumerate(params):
        rows.add(SamplingParams(**one), 7, 0, [row], **given)
    return rows.build()


def noise(row: int, vocab_size: int) -> NDArray[np.float32]:
    """Return the noise of a row of `batch`."""
    return gumbel(7, row, vocab_size, 0, 0)


def test_what_is_sampled_is_what_remains_possible_with_the_noise_of_the_row() -> None:
    params = {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.01}
    given = batch(params, params, params)
    possible = probs(LOGITS, given) > 0
    for row, (token,) in enumerate(sample(LOGITS, given)):
        scores = np.where(possible[row], LOGITS[row] / np.float32(0.7) + noise(row, 50), -np.inf)
        assert token == scores.argmax()


def test_a_greedy_row_beside_one_that_is_not_gets_no_noise() -> None:
    found = sample(LOGITS, batch({"temperature": 0.0}, {"temperature": 50.0}, {"temperature": 0.0}))[:, 0]
    assert found[[0, 2]].tolist() == LOGITS[[0, 2]].argmax(axis=1).tolist()
    assert found[1] == (LOGITS[1] / np.float32(50) + noise(1, 50)).argmax()


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"temperature": 0.7, "top_k": 5, "typical_p": 0.8}])
def test_a_distribution_sums_to_one_and_the_callers_logits_stay(params: dict[str, float]) -> None:
    before = LOGITS.copy()
    given = batch(*[{**params, "repetition_penalty": 1.5, "logit_bias": {3: 5.0}}] * 3, prompt=[1, 2], output=[3])
    assert probs(LOGITS, given).sum(axis=1) == pytest.approx([1, 1, 1], abs=1e-12)
    sample(LOGITS, given)
    assert LOGITS.tobytes() == before.tobytes()


def test_the_k_best_are_those_of_a_whole_sort() -> None:
    coarse = np.round(LOGITS)  # ties
    expected = np.argsort(-coarse, axis=1, kind="stable")
    for k in (1, 2, 7, 50):
        assert (sample(coarse, SamplingBatch.greedy(3), k) == expected[:, :k]).all()
        assert (top_k(coarse, k)[0] == expected[:, :k]).all()


def test_logprobs_are_those_of_float64() -> None:
    exact = LOGITS.astype(np.float64) - np.log(np.exp(LOGITS.astype(np.float64)).sum(axis=1, keepdims=True))
    tokens = [4, 0, 49]
    assert logprobs(LOGITS, tokens) == pytest.approx(exact[[0, 1, 2], tokens], abs=1e-6)
    best, values = top_k(LOGITS, 3)
    assert values == pytest.approx(np.take_along_axis(exact, best, axis=1), abs=1e-6)


def test_penalties_of_one_row_leave_the_others_alone() -> None:
    given = batch({"temperature": 1.0}, {"temperature": 1.0, "presence_penalty": 2.0}, output=[5])
    p = probs(LOGITS[[0, 0]], given)
    odds = p[:, 5] / p[:, 6]
    assert odds[1] / odds[0] == pytest.approx(np.exp(-2.0), rel=1e-5)


def test_one_bad_row_is_named_and_a_mask_of_other_words_is_refused() -> None:
    broken = LOGITS.copy()
    broken[1, 3] = np.nan
    with pytest.raises(SamplingError) as caught:
        sample(broken, batch({"temperature": 1.0}, {"temperature": 1.0}, {"temperature": 1.0}))
    assert list(caught.value.rows) == [1]
    with pytest.raises(UsageError, match=r"masks must be uint32 \[1, 2\]"):
        sample(LOGITS[:1], batch({"temperature": 1.0}, masks=[np.zeros(1, np.uint32)]))
