from __future__ import annotations

import json
from typing import Any

import pytest

from outpace.measure.explain import explain
from outpace.trace import PHASES, SCHEMA, Stats, Step, Times, Trace
from outpace.types import TokenLogprob
from outpace.types.tree import EMPTY, DraftTree
from tests.traces import small_story

TIMES = Times(0.5, 2.0, 0.25, 0.125)


def step(tokens: list[int], tree: DraftTree = EMPTY, path: list[int] | None = None) -> Step:
    return Step(0, 3, 1, tree, [9] * (len(tree) + 1), path or [], tokens, TIMES)


def stats_of(*steps: Step, **given: Any) -> Stats:
    stats = Stats(**given)
    for one in steps:
        stats.add_pass(one.times, is_scored=True)
        stats.add_step(one)
    return stats


def test_the_time_of_a_step_is_that_of_its_phases() -> None:
    assert TIMES.total == sum(getattr(TIMES, phase) for phase in PHASES) == 2.875


def test_passes_before_the_first_token_are_prefill_and_those_after_it_are_decoding() -> None:
    stats = Stats(prompt_tokens=30, cached_tokens=7)
    stats.add_pass(TIMES, is_scored=False)  # a chunk of the prompt, which wrote nothing
    stats.add_pass(TIMES, is_scored=True)
    stats.add_step(step([1]))
    stats.add_pass(TIMES, is_scored=True)
    stats.add_step(step([2, 3]))
    assert (stats.prefill_seconds, stats.decode_seconds) == (2 * TIMES.total, TIMES.total)
    assert stats.seconds == {phase: 3 * getattr(TIMES, phase) for phase in PHASES}
    assert stats.prefill_tokens_per_second == (30 - 7) / (2 * TIMES.total)
    assert stats.decode_tokens_per_second == 2 / TIMES.total, "the first step's token belongs to prefill"


def test_what_drafters_learn_from_a_pass_counts_where_the_pass_did_and_as_drafting() -> None:
    stats = Stats()
    stats.add_pass(TIMES, is_scored=True)
    stats.add_learning(0.25)
    assert (stats.prefill_seconds, stats.decode_seconds) == (TIMES.total + 0.25, 0.0)
    stats.add_pass(TIMES, is_scored=True)
    stats.add_learning(0.5)
    assert (stats.prefill_seconds, stats.decode_seconds) == (TIMES.total + 0.25, TIMES.total + 0.5)
    assert stats.seconds["draft"] == 2 * TIMES.draft + 0.75


def test_rates_that_nothing_was_measured_for_are_not_zero_but_none() -> None:
    only = stats_of(step([1, 2]), prompt_tokens=4)
    assert (only.tokens_per_step, only.decode_tokens_per_second) == (2.0, None)
    assert (Stats().tokens_per_step, Stats().prefill_tokens_per_second) == (0.0, None)


def test_a_node_counts_for_every_drafter_that_proposed_it_and_as_accepted_only_on_the_path() -> None:
    tree = DraftTree((1, 2, 3), (-1, -1, 0), (("a", "b"), ("b",), ("a",)), (0.5, 0.5, 0.5))
    stats = stats_of(step([1, 9], tree, [0]), step([7]))
    assert stats.proposed == {"a": 2, "b": 2}
    assert stats.accepted == {"a": 1, "b": 1}
    never = stats_of(step([9], DraftTree.chain([4, 5], "c")))
    assert never.as_dict()["drafters"] == {"c": {"proposed": 2, "accepted": 0}}


def test_stats_of_two_requests_share_no_counts() -> None:
    stats_of(step([1]), step([9], DraftTree.chain([4], "a")))
    assert Stats().proposed == {}
    assert set(Stats().seconds.values()) == {0.0}


def test_a_step_tells_its_tree_what_the_target_said_and_where_the_time_went() -> None:
    _, drafted, _ = small_story().steps
    told = json.loads(json.dumps(drafted.as_dict()))
    assert told["tree"]["parents"] == [-1, -1, 0, 2, 3]
    assert told["tree"]["sources"][0] == ["ngram", "suffix"]
    assert told["tree"]["confidence"] == [0.9, 0.2, 0.8, 0.7, 0.6]
    assert told["path"] == [0, 2]
    assert [told["target_tokens"][0], told["target_tokens"][1]] == told["tokens"][:2]
    assert sum(told["seconds"].values()) == pytest.approx(0.02)
    assert told["forecast"]["reason"] == "drafting pays"
    assert told["forecast"]["drafters"]["suffix"] == {"proposed": 2, "expected": 0.5}
    assert step([1]).as_dict()["forecast"] is None


def test_a_trace_is_versioned_json_with_its_header_beside_the_rest() -> None:
    story = small_story()
    told = story.as_dict(logprobs=True, model="other")
    assert told["schema"] == SCHEMA
    assert told["model"] == "other"
    assert told["tokens"] == [token for one in told["steps"] for token in one["tokens"]]
    assert [told["texts"][str(token)] for token in told["tokens"]] == told["pieces"]
    assert told["logprobs"][0] == [-0.1, [[story.tokens[0], -0.1], [0, -2.5]]]
    assert story.as_dict()["logprobs"] is None


def test_json_holds_everything_and_is_what_explain_reads() -> None:
    only = Step(0, 1, 1, EMPTY, [0], [], [1], TIMES)
    stats = Stats(prompt_tokens=1)
    stats.add_pass(TIMES, is_scored=True)
    stats.add_step(only)
    trace = Trace(
        header={
            "outpace": "0", "model": "é", "ops": "reference", "threads": 1, "strategy": "none",
            "verification": "exact", "kv": {"format": "f32", "block_size": 4}, "seed": 1, "temperature": 0.0,
            "finish_reason": "length",
        },
        prompt=[0], tokens=[1], pieces=["日"], sources=[()], steps=[only], stats=stats, prompt_pieces=["p"],
        texts={1: "日"}, logprobs=[TokenLogprob(1, -0.5, ((1, -0.5), (0, -1.5)))],
    )  # fmt: skip
    text = trace.to_json()
    assert "日" in text
    assert json.loads(text) == json.loads(json.dumps(trace.as_dict()))
    assert json.loads(text)["schema"] == SCHEMA
    assert json.loads(text)["logprobs"] == [[-0.5, [[1, -0.5], [0, -1.5]]]]
    assert "日" in explain(json.loads(text))
