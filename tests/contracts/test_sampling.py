"""The contract of `sample`, `probs`, `logprobs` and `top_k`, for every implementation of the ops."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from outpace.errors import SamplingError, UsageError
from outpace.ops.philox import gumbel
from outpace.ops.protocol import Ops
from outpace.ops.sampling import SamplingBatch, SamplingRows
from outpace.types import COIN_STREAM, TOKEN_STREAM, SamplingParams
from tests.implementations import MAKERS

LOGITS = np.array([1.0, 3.0, 2.0, 3.0, -1.0, 0.5], np.float32)  # likeliest: 1 and 3 (a tie), 2, 0, 5, 4


@pytest.fixture(params=list(MAKERS))
def ops(request: pytest.FixtureRequest) -> Ops:
    return MAKERS[request.param](1)


def rows(*given: dict[str, Any]) -> SamplingBatch:
    """Return a batch; what a row has no argument for goes to its params (temperature 1 unless told)."""
    batch = SamplingRows()
    for one in given:
        params = {"temperature": 1.0} | {name: value for name, value in one.items() if name not in ARGUMENTS}
        batch.add(
            SamplingParams(**params),
            one.get("seed", 0),
            one.get("sample_index", 0),
            [one.get("position", 0)],
            prompt=one.get("prompt", ()),
            output=one.get("output", ()),
            masks=[one.get("mask")],
            stream=one.get("stream", TOKEN_STREAM),
        )
    return batch.build()


ARGUMENTS = {"seed", "sample_index", "position", "prompt", "output", "mask", "stream"}


GREEDY = {"temperature": 0.0}


def row(**given: Any) -> SamplingBatch:
    return rows(given)


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    p = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(p / p.sum())


def probs(ops: Ops, logits: NDArray[np.float32], **given: Any) -> NDArray[np.float64]:
    found = ops.probs(ops.array(logits[None]), row(**given))
    assert found.shape == (1, len(logits))
    assert found.dtype == np.float64
    return found[0]


def support(p: NDArray[np.float64]) -> list[int]:
    return np.flatnonzero(p).tolist()


def packed(allowed: list[int], vocabulary: int = 6) -> NDArray[np.uint32]:
    mask = np.zeros(-(-vocabulary // 32), np.uint32)
    for token in allowed:
        mask[token // 32] |= np.uint32(1 << token % 32)
    return mask


def many(rows: int, vocabulary: int = 300) -> NDArray[np.float32]:
    return (3 * np.random.default_rng(0).standard_normal((rows, vocabulary))).astype(np.float32)


# -- the distribution ---------------------------------------------------------------------------------------------


def test_plain_probabilities_are_the_softmax(ops: Ops) -> None:
    np.testing.assert_allclose(probs(ops, LOGITS), softmax(LOGITS), rtol=1e-6)


def test_a_temperature_divides_the_logits(ops: Ops) -> None:
    np.testing.assert_allclose(probs(ops, LOGITS, temperature=0.5), softmax(2 * LOGITS), rtol=1e-6)


def test_greedy_probabilities_have_all_mass_on_the_first_of_the_best(ops: Ops) -> None:
    assert probs(ops, LOGITS, temperature=0.0).tolist() == [0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("k", "kept"), [(1, [1]), (2, [1, 3]), (3, [1, 2, 3]), (6, [0, 1, 2, 3, 4, 5]), (99, range(6))]
)
def test_top_k_keeps_exactly_k_and_of_equals_the_lowest_ids(ops: Ops, k: int, kept: list[int]) -> None:
    p = probs(ops, LOGITS, top_k=k)
    assert support(p) == list(kept)
    np.testing.assert_allclose(p[list(kept)], softmax(LOGITS[list(kept)]), rtol=1e-6)


def test_a_tie_at_the_last_place_goes_to_the_lowest_ids(ops: Ops) -> None:
    logits = np.array([0.0, 2.0, 1.0, 1.0, 1.0, 3.0], np.float32)
    assert support(probs(ops, logits, top_k=3)) == [1, 2, 5]
    assert support(probs(ops, logits, top_k=4)) == [1, 2, 3, 5]
    assert ops.sample(ops.array(logits[None]), row(temperature=0.0), k=3).tolist() == [[5, 1, 2]]
    assert ops.top_k(ops.array(logits[None]), 4)[0].tolist() == [[5, 1, 2, 3]]


# The masses, largest first: 1: 0.385, 3: 0.385, 2: 0.142, 0: 0.052, 5: 0.032, 4: 0.007
@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.0, [1]), (0.38, [1]), (0.39, [1, 3]), (0.76, [1, 3]), (0.78, [1, 2, 3]), (0.92, [0, 1, 2, 3]), (1.0, range(6))],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(ops: Ops, top_p: float, kept: list[int]) -> None:
    assert support(probs(ops, LOGITS, top_p=top_p)) == list(kept)


@pytest.mark.parametrize(("min_p", "kept"), [(1.0, [1, 3]), (0.4, [1, 3]), (0.36, [1, 2, 3]), (0.1, [0, 1, 2, 3])])
def test_min_p_is_measured_against_the_largest_probability(ops: Ops, min_p: float, kept: list[int]) -> None:
    assert support(probs(ops, LOGITS, min_p=min_p)) == kept


# The logits' mean is 1.42, their standard deviation 1.43: from the largest, 3, down to 2.28, 1.57, 0.85, ...
@pytest.mark.parametrize(
    ("n", "kept"),
    [(0.1, [1, 3]), (0.69, [1, 3]), (0.71, [1, 2, 3]), (1.39, [1, 2, 3]), (1.41, [0, 1, 2, 3]), (9, range(6))],
)
@pytest.mark.parametrize("temperature", [0.01, 1.0, 7.0])
def test_top_n_sigma_keeps_the_logits_near_the_largest_at_any_temperature(
    ops: Ops, n: float, kept: list[int], temperature: float
) -> None:
    p = probs(ops, LOGITS, top_n_sigma=n, temperature=temperature)
    allowed = np.isin(np.arange(6), list(kept))
    np.testing.assert_allclose(p, softmax(np.where(allowed, LOGITS / temperature, -np.inf)), rtol=1e-4, atol=1e-300)
    assert not p[~allowed].any()


def test_top_n_sigma_does_not_count_tokens_that_may_not_come(ops: Ops) -> None:
    # Of 3, 2 and 1 the standard deviation is 0.816.
    assert support(probs(ops, LOGITS, mask=packed([0, 1, 2]), top_n_sigma=1.3)) == [1, 2]
    assert support(probs(ops, LOGITS, mask=packed([0, 1, 2]), top_n_sigma=1.2)) == [1]
    assert support(probs(ops, np.full(6, 2.0, np.float32), top_n_sigma=0.5)) == list(range(6))


def test_top_k_counts_what_top_n_sigma_left(ops: Ops) -> None:
    assert support(probs(ops, LOGITS, top_n_sigma=0.8, top_k=4)) == [1, 2, 3]
    assert support(probs(ops, LOGITS, top_n_sigma=0.8, top_k=2)) == [1, 3]


# Information in nats: 1 and 3: 0.95, 2: 1.95, 0: 2.95, 5: 3.45, 4: 4.95. Its expectation, the entropy, is 1.31.
@pytest.mark.parametrize(
    ("mass", "kept"),
    [(0.0, [1]), (0.38, [1]), (0.39, [1, 3]), (0.76, [1, 3]), (0.78, [1, 2, 3]), (0.92, [0, 1, 2, 3]), (1.0, range(6))],
)
def test_typical_p_keeps_the_tokens_whose_information_is_nearest_to_the_entropy(
    ops: Ops, mass: float, kept: list[int]
) -> None:
    p = probs(ops, LOGITS, typical_p=mass)
    assert support(p) == list(kept)
    np.testing.assert_allclose(p[list(kept)], softmax(LOGITS[list(kept)]), rtol=1e-6)


def test_typical_p_may_drop_the_most_likely_token(ops: Ops) -> None:
    # 0.3 once, 0.07 ten times: the entropy, 2.22 nats, is nearer to the 2.66 of the ten than to the 1.20 of the first.
    logits = np.log(np.array([0.07] * 5 + [0.3] + [0.07] * 5)).astype(np.float32)
    assert support(probs(ops, logits, typical_p=0.2)) == [0, 1, 2]
    assert support(probs(ops, logits, typical_p=0.69)) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert support(probs(ops, logits, typical_p=0.71)) == list(range(11))
    # What follows looks at what is left: all ten have the largest probability now.
    assert support(probs(ops, logits, typical_p=0.69, min_p=1.0)) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert support(probs(ops, logits, typical_p=0.69, top_p=0.35)) == [0, 1, 2, 3]
    # Of the five that top-k leaves, the entropy, 1.36, is nearer to the 0.66 of the first.
    assert support(probs(ops, logits, top_k=5, typical_p=0.4)) == [5]


def test_typical_p_agrees_with_the_definition_on_random_logits(ops: Ops) -> None:
    for x in many(20):
        p = softmax(x)
        information = -np.log(p)
        order = np.argsort(np.abs(information - (p * information).sum()), kind="stable")
        kept = order[: int(np.searchsorted(np.cumsum(p[order]), 0.6)) + 1]
        assert support(probs(ops, x, typical_p=0.6)) == sorted(kept.tolist())


def test_top_p_counts_what_top_k_left(ops: Ops) -> None:
    # Of {1, 3, 2} the first two have 0.845 of the mass, of all tokens 0.77.
    assert support(probs(ops, LOGITS, top_k=3, top_p=0.8)) == [1, 3]
    assert support(probs(ops, LOGITS, top_p=0.8)) == [1, 2, 3]


def test_filters_look_at_the_distribution_after_temperature(ops: Ops) -> None:
    # At temperature 4 the masses are 0.23, 0.23, 0.18, ...: two tokens no longer reach 0.6.
    assert len(support(probs(ops, LOGITS, temperature=4.0, top_p=0.6))) == 3
    assert len(support(probs(ops, LOGITS, temperature=1.0, top_p=0.6))) == 2


def test_the_repetition_penalty_divides_positive_and_multiplies_negative_logits_of_prompt_and_output(ops: Ops) -> None:
    expected = LOGITS.copy()
    expected[[1, 2]] /= 2  # once each, however often they came
    expected[4] *= 2
    found = probs(ops, LOGITS, repetition_penalty=2.0, prompt=[1, 4, 1], output=[2, 1])
    np.testing.assert_allclose(found, softmax(expected), rtol=1e-6)


def test_presence_and_frequency_count_the_output_only(ops: Ops) -> None:
    expected = LOGITS.copy()
    expected[1] -= 0.5 + 2 * 0.25
    expected[0] -= 0.5 + 0.25
    found = probs(ops, LOGITS, presence_penalty=0.5, frequency_penalty=0.25, prompt=[3, 3], output=[1, 0, 1])
    np.testing.assert_allclose(found, softmax(expected), rtol=1e-6)


def test_penalties_come_before_the_bias_and_the_bias_before_temperature(ops: Ops) -> None:
    expected = LOGITS.copy()
    expected[1] = (expected[1] / 2 - 1 + 4) / 0.5
    expected[[0, 2, 3, 4, 5]] /= 0.5
    found = probs(
        ops,
        LOGITS,
        repetition_penalty=2.0,
        presence_penalty=1.0,
        output=[1],
        logit_bias={1: 4.0},
        temperature=0.5,
    )
    np.testing.assert_allclose(found, softmax(expected), rtol=1e-6)


def test_a_mask_leaves_only_what_it_allows(ops: Ops) -> None:
    p = probs(ops, LOGITS, mask=packed([0, 4]))
    assert support(p) == [0, 4]
    np.testing.assert_allclose(p[[0, 4]], softmax(LOGITS[[0, 4]]), rtol=1e-6)


def test_a_mask_works_beyond_its_first_word(ops: Ops) -> None:
    logits = many(1, 100)[0]
    allowed = [0, 31, 32, 63, 64, 99]
    assert support(probs(ops, logits, mask=packed(allowed, 100))) == allowed
    greedy = row(temperature=0.0, mask=packed(allowed, 100))
    best = allowed[int(logits[allowed].argmax())]
    assert ops.sample(ops.array(logits[None]), greedy).tolist() == [[best]]


def test_filters_count_only_what_the_mask_allows(ops: Ops) -> None:
    assert support(probs(ops, LOGITS, mask=packed([0, 4, 5]), top_k=2)) == [0, 5]
    assert support(probs(ops, LOGITS, mask=packed([0, 4, 5]), top_p=0.5)) == [0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_mask_that_allows_nothing_is_refused(ops: Ops, temperature: float) -> None:
    with pytest.raises(UsageError, match="no token is allowed"):
        ops.sample(ops.array(LOGITS[None]), row(temperature=temperature, mask=packed([])))


def test_a_mask_of_another_length_is_refused(ops: Ops) -> None:
    with pytest.raises(UsageError, match="mask"):
        ops.sample(ops.array(LOGITS[None]), row(mask=np.ones(2, np.uint32)))


@pytest.mark.parametrize("token", [-1, 6])
def test_a_bias_on_a_token_outside_the_vocabulary_is_refused(ops: Ops, token: int) -> None:
    with pytest.raises(UsageError, match=str(token)):
        ops.sample(ops.array(LOGITS[None]), row(logit_bias={token: 1.0}))


# -- the sample --------------------------------------------------------------------------------------------


def test_greedy_takes_the_first_of_the_best(ops: Ops) -> None:
    logits = ops.array(np.stack([LOGITS, LOGITS[::-1]]))
    assert ops.sample(logits, SamplingBatch.greedy(2)).tolist() == [[1], [2]]
    assert ops.sample(logits, rows(GREEDY | {"logit_bias": {0: 0.0}}, GREEDY)).tolist() == [[1], [2]]


def test_a_sample_is_the_argmax_of_logits_over_temperature_plus_noise_in_float32(ops: Ops) -> None:
    logits = many(8)
    batch = rows(
        *(
            {"seed": 2**63 + i, "position": 100 * i, "temperature": 0.7, "sample_index": i, "stream": i}
            for i in range(8)
        )
    )
    scores = np.stack([x / np.float32(0.7) + gumbel(2**63 + i, 100 * i, len(x), i, i) for i, x in enumerate(logits)])
    assert scores.dtype == np.float32
    assert ops.sample(ops.array(logits), batch)[:, 0].tolist() == scores.argmax(axis=1).tolist()
    best = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    assert ops.sample(ops.array(logits), batch, k=5).tolist() == best.tolist()


@pytest.mark.parametrize("field", ["seed", "position", "sample_index", "stream"])
def test_noise_depends_on_seed_position_sample_and_stream(ops: Ops, field: str) -> None:
    logits = ops.array(np.zeros((1, 300), np.float32))  # the best is the one with the most noise
    ours, other = (row(**{field: value}) for value in (0, COIN_STREAM))
    assert ops.sample(logits, ours, k=4).tolist() != ops.sample(logits, other, k=4).tolist()


def test_the_k_best_come_in_order_and_of_equals_the_lowest_ids(ops: Ops) -> None:
    assert ops.sample(ops.array(LOGITS[None]), row(temperature=0.0), k=6).tolist() == [[1, 3, 2, 0, 5, 4]]


ROWS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"seed": 1, "top_p": 0.7},
    {"seed": 2, "top_k": 5},
    {"temperature": 0.0, "repetition_penalty": 1.5, "prompt": [1, 2]},
    {"seed": 3, "min_p": 0.1, "presence_penalty": 1.0, "output": [4]},
    {"seed": 4, "mask": packed(list(range(0, 300, 2)), 300)},
    {"seed": 5, "logit_bias": {7: 3.0, 9: -math.inf}, "frequency_penalty": 0.5, "output": [7, 7, 8]},
]


def test_a_row_is_the_same_alone_and_among_others(ops: Ops) -> None:
    logits, batch = ops.array(many(len(ROWS))), rows(*ROWS)
    together, distributions = ops.sample(logits, batch), ops.probs(logits, batch)
    for i, given in enumerate(ROWS):
        for alone in (rows(given), batch.select([i])):
            own = ops.select(logits, [i])
            assert ops.sample(own, alone).tolist() == together[i : i + 1].tolist()
            assert (ops.probs(own, alone) == distributions[i]).all()


def test_selected_rows_come_in_the_order_given(ops: Ops) -> None:
    logits, batch = ops.array(many(len(ROWS))), rows(*ROWS)
    order = [6, 2, 2, 0, 5]
    expected = ops.sample(logits, batch)[order]
    assert ops.sample(ops.select(logits, order), batch.select(order)).tolist() == expected.tolist()
    assert ops.numpy(ops.select(logits, order)).tolist() == many(len(ROWS))[order].tolist()
    assert ops.numpy(ops.select(logits, [])).shape == (0, 300)


@pytest.mark.parametrize("index", [-1, 7])
def test_a_row_that_is_not_there_cannot_be_selected(ops: Ops, index: int) -> None:
    with pytest.raises(UsageError, match=rf"in \[0, 6\], got {index}"):
        ops.select(ops.array(many(7)), [0, index])


def test_samples_stay_inside_the_filters(ops: Ops) -> None:
    for seed in range(50):
        token = int(ops.sample(ops.array(LOGITS[None]), row(seed=seed, top_k=3, temperature=5.0))[0, 0])
        assert token in (1, 2, 3)


def test_no_rows_give_no_tokens(ops: Ops) -> None:
    empty = ops.array(np.empty((0, 6), np.float32))
    assert ops.sample(empty, SamplingBatch.greedy(0)).shape == (0, 1)
    assert ops.sample(empty, row().select([]), k=3).shape == (0, 3)
    assert ops.probs(empty, SamplingBatch.greedy(0)).shape == (0, 6)


@pytest.mark.parametrize("filters", [{"top_p": 0.99}, {"top_n_sigma": 2.0}, {"typical_p": 0.99}], ids=str)
def test_samples_follow_the_distribution(ops: Ops, filters: dict[str, float]) -> None:
    """Chi-square over 4,000 positions: right ops fail with probability 1e-6, and the seed is fixed anyway."""
    given = {"temperature": 0.8, "seed": 7, **filters}
    p = probs(ops, LOGITS, **given)
    draws = 4000
    batch = rows(*({"position": position} | given for position in range(draws)))
    tokens = ops.sample(ops.array(np.tile(LOGITS, (draws, 1))), batch)[:, 0].tolist()
    found = Counter(tokens)
    assert set(found) <= set(support(p))
    chi_square = sum((found[t] - draws * p[t]) ** 2 / (draws * p[t]) for t in support(p))
    assert len(support(p)) == 5
    assert chi_square < 33.4  # 4 degrees of freedom
    biased = softmax(LOGITS / 1.0)  # the control: the distribution of another temperature must not pass
    assert sum((found[t] - draws * biased[t]) ** 2 / (draws * biased[t]) for t in support(p)) > 33.4


# -- rows that have no token -----------------------------------------------------------------------------

NOT_FINITE = "a logit is NaN or +inf: the model file or a logits processor is broken"
NOTHING_ALLOWED = "no token is allowed here: a constraint, logit_bias or a logits processor forbids them all"
INF, NAN = np.float32(np.inf), np.float32(np.nan)


@pytest.mark.parametrize("given", [{"temperature": 0.0}, {}, {"top_p": 0.9}, {"top_k": 3, "min_p": 0.1}], ids=str)
@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([NAN] * 300, NOT_FINITE),
        ([0.0] * 299 + [NAN], NOT_FINITE),
        ([NAN] + [0.0] * 299, NOT_FINITE),
        ([0.0] * 100 + [NAN] + [9.0] * 199, NOT_FINITE),
        ([0.0] * 77 + [INF] + [0.0] * 222, NOT_FINITE),
        ([-INF] * 298 + [NAN, -INF], NOT_FINITE),
        ([-INF] * 300, NOTHING_ALLOWED),
    ],
    ids=["all NaN", "last NaN", "first NaN", "one NaN", "one inf", "NaN among -inf", "all -inf"],
)
def test_a_row_that_is_no_row_of_logits_is_refused_and_named(
    ops: Ops, given: dict[str, Any], values: list[float], reason: str
) -> None:
    logits = many(3)
    logits[1] = values
    x = ops.array(logits)
    batches = [rows(*[given] * 3), *([SamplingBatch.greedy(3)] if given == GREEDY else [])]
    for batch in batches:
        for call in (ops.sample, lambda x, batch: ops.sample(x, batch, 4), ops.probs):
            with pytest.raises(SamplingError) as caught:
                call(x, batch)
            assert caught.value.rows == {1: reason}
    for raw in (lambda: ops.logprobs(x, [1, 2, 3]), lambda: ops.top_k(x, 1), lambda: ops.top_k(x, 7)):
        with pytest.raises(SamplingError) as caught:
            raw()
        assert caught.value.rows == {1: reason}


def test_every_row_without_a_token_is_named_with_its_own_reason_and_the_others_can_be_sampled(ops: Ops) -> None:
    logits = many(8)
    logits[2, 5] = np.nan
    given = [
        {"seed": 1},
        {"seed": 2, "mask": packed([], 300)},
        {"seed": 3},
        {"seed": 4, "logit_bias": {300: 1.0}},
        {"seed": 5, "presence_penalty": 1.0, "output": [3, 999]},
        {"temperature": 0.0, "repetition_penalty": 2.0, "prompt": [-7]},
        {"seed": 6, "logit_bias": dict.fromkeys(range(300), -math.inf)},
        {"seed": 7, "presence_penalty": 1.0, "output": [3, 4], "mask": packed([3, 4, 5], 300)},
    ]
    x, batch = ops.array(logits), rows(*given)
    for call in (ops.sample, ops.probs):
        with pytest.raises(SamplingError) as caught:
            call(x, batch)
        assert caught.value.rows == {
            1: NOTHING_ALLOWED,
            2: NOT_FINITE,
            3: "logit_bias names token 300; the vocabulary is [0, 300)",
            4: "the output names token 999; the vocabulary is [0, 300)",
            5: "the prompt names token -7; the vocabulary is [0, 300)",
            6: NOTHING_ALLOWED,
        }
        assert str(caught.value).startswith(f"row 1 of the logits: {NOTHING_ALLOWED}; row 2 of the logits: ")
    fine = [0, 7]
    found = ops.sample(ops.select(x, fine), batch.select(fine))
    for token, i in zip(found, fine, strict=True):
        assert ops.sample(ops.array(logits[i : i + 1]), rows(given[i]))[0].tolist() == token.tolist()


def test_a_mask_may_hide_a_logit_that_is_no_number(ops: Ops) -> None:
    logits = LOGITS.copy()
    logits[1] = np.nan
    assert support(probs(ops, logits, mask=packed([0, 2]))) == [0, 2]
    assert ops.sample(ops.array(logits[None]), row(temperature=0.0, mask=packed([0, 2]))).tolist() == [[2]]


def test_logits_that_overflow_when_divided_are_refused(ops: Ops) -> None:
    with pytest.raises(SamplingError, match="NaN or"):
        probs(ops, np.array([1e38, 0.0], np.float32), temperature=0.01)


def test_a_batch_of_another_number_of_rows_is_refused(ops: Ops) -> None:
    logits = ops.array(many(2))
    for batch in (SamplingBatch.greedy(1), row(), row(mask=packed([1], 300))):
        with pytest.raises(UsageError, match=r"batch of 1 rows met logits of shape \[2, 300\]"):
            ops.sample(logits, batch)
        with pytest.raises(UsageError, match=r"batch of 1 rows met logits of shape \[2, 300\]"):
            ops.probs(logits, batch)
    with pytest.raises(UsageError, match="1 tokens for logits"):
        ops.logprobs(logits, [1])
    for token in (-1, 300):
        with pytest.raises(UsageError, match=rf"token must be in \[0, 299\], got {token}"):
            ops.logprobs(logits, [1, token])


# -- log-probabilities -----------------------------------------------------------------------------------


def test_logprobs_are_the_raw_log_softmax(ops: Ops) -> None:
    logits = many(4)
    found = ops.logprobs(ops.array(logits), [0, 299, 7, 7])
    expected = np.log([softmax(x)[t] for x, t in zip(logits, [0, 299, 7, 7], strict=True)])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_logprobs_survive_large_logits_and_never_exceed_zero(ops: Ops) -> None:
    logits = np.array([[300.0, -300.0, 0.0], [1e-3, -40.0, -50.0]], np.float32)
    found = ops.logprobs(ops.array(logits), [1, 0])
    assert math.isclose(found[0], -600)
    assert -1e-6 < found[1] <= 0


def test_top_k_gives_the_most_likely_tokens_in_order_with_their_logprobs(ops: Ops) -> None:
    tokens, values = ops.top_k(ops.array(LOGITS[None]), 4)
    assert tokens.tolist() == [[1, 3, 2, 0]]
    np.testing.assert_allclose(values, np.log(softmax(LOGITS))[None, [1, 3, 2, 0]], atol=1e-6)
    assert values.dtype == np.float32


@pytest.mark.parametrize("k", [0, 7])
def test_a_number_of_tokens_outside_the_vocabulary_is_refused(ops: Ops, k: int) -> None:
    with pytest.raises(UsageError, match=r"\[1, 6\]"):
        ops.top_k(ops.array(LOGITS[None]), k)
    with pytest.raises(UsageError, match=r"\[1, 6\]"):
        ops.sample(ops.array(LOGITS[None]), SamplingBatch.greedy(1), k)
