from __future__ import annotations

from typing import Any

import pytest

from outpace.api.strategies import STRATEGIES, TRAINED
from outpace.drafters.ngram import NGram
from outpace.measure.certify.identity import Identity, default_strategies, wrong_token
from tests.unit.measure.certify.conftest import PROMPTS


def identity(opener: Any, **overrides: Any) -> Identity:
    lm = opener("f32", 4096)
    prompts = [prompt.encode(lm.tokenizer) for prompt in PROMPTS]
    options = {"num_tokens": 10, "num_recomputed": 3, "batches": (1,), "max_groups": None, **overrides}
    return Identity(lm, "f32", prompts, lm, **options)


@pytest.mark.parametrize("cut", [3, 7])
def test_a_sequence_that_ends_early_is_not_plain_decodings(opener: Any, cut: int) -> None:
    """Also where it has just the length of those that `recompute` writes."""
    own = identity(opener)
    (plain, _) = own.write_plain("greedy")
    assert own.difference(0, plain, "greedy", length=10) is None
    assert own.difference(0, plain[:3], "greedy", length=3) is None
    found = own.difference(0, plain[:cut], "greedy", length=10)
    assert found is not None
    assert (found.position, found.other) == (cut, None)


def test_the_control_is_one_wrong_token_and_is_found(opener: Any) -> None:
    own = identity(opener)
    own.write_plain("sampled")
    found = wrong_token(own, "sampled")
    assert found is not None
    assert (found.position, found.plain) == (5, own.plain["sampled"][0][5])


def test_the_effort_that_is_foretold_is_the_effort_that_is_reported(opener: Any) -> None:
    begun: list[int] = []
    own = identity(opener, batches=(1, 2), begin=lambda units, what: begun.append(units))
    strategies = ["ngram", "prediction", "recompute"]
    own.write_plain("greedy")
    runs = [run for strategy in strategies for run in own.runs(strategy, "greedy")]
    assert sum(begun) == own.effort(strategies)
    assert all(run.identical for run in runs)
    assert [(run.case.batch, run.case.prefix) for run in runs if run.case.strategy == "ngram"] == [
        (1, "fresh"), (1, "cached"), (2, "fresh"), (2, "cached"),
    ]  # fmt: skip


def test_where_not_all_groups_run_cases_take_turns(opener: Any) -> None:
    own = identity(opener, batches=(1, 1), max_groups=1)
    own.write_plain("greedy")
    first, _, second, _ = own.runs("ngram", "greedy")
    assert (first.sequences, second.sequences) == (1, 1)
    assert own._groups(1, 0) == [[0]]
    assert own._groups(1, 1) == [[1]]


def test_every_strategy_is_examined_but_plain_decoding_and_what_the_model_lacks(opener: Any) -> None:
    lm = identity(opener).lm
    assert set(default_strategies(lm)) == set(STRATEGIES) - {"none", *TRAINED}
    lm.loaded.trained = NGram()
    lm.loaded.trained.name = "medusa"
    assert set(default_strategies(lm)) == set(STRATEGIES) - {"none", "eagle", "block"}
