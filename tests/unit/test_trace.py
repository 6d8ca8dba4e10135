from __future__ import annotations

import json

import pytest

from outpace.measure.explain import explain
from outpace.trace import SCHEMA, Stats, Step, Times, Trace
from outpace.tree import EMPTY, DraftTree
from outpace.types import TokenLogprob

TIMES = Times(draft=0.1, forward=0.7, verify=0.15, commit=0.05)


def step(tokens: list[int], tree: DraftTree = EMPTY, path: tuple[int, ...] = ()) -> Step:
    return Step(
        request=0, position=1, num_pending=1, tree=tree, target_tokens=[0] * (len(tree) + 1), path=path, tokens=tokens,
        times=TIMES,
    )  # fmt: skip


def test_the_first_step_counts_as_prefill() -> None:
    stats = Stats(prompt_tokens=10, cached_tokens=4)
    assert (stats.tokens_per_step, stats.decode_tokens_per_second, stats.prefill_tokens_per_second) == (0.0, None, None)
    for tokens in ([1, 2], [3], [4, 5, 6]):
        stats.add_pass(TIMES)
        stats.add_step(step(tokens))
    assert stats.tokens_per_step == 2.0
    assert stats.prefill_seconds == pytest.approx(1.0)
    assert stats.prefill_tokens_per_second == pytest.approx(6.0)
    assert stats.decode_tokens_per_second == pytest.approx(4 / 2.0)
    assert stats.seconds == pytest.approx({"draft": 0.3, "forward": 2.1, "verify": 0.45, "commit": 0.15})


def test_drafts_are_counted_for_everybody_who_made_them() -> None:
    stats = Stats()
    tree = DraftTree((7, 8, 9), (-1, 0, -1), (("a", "b"), ("a",), ("b",)), (0.5, 0.5, 0.5))
    stats.add_step(step([7, 8, 5], tree, path=(0, 1)))
    assert stats.as_dict()["drafters"] == {
        "a": {"proposed": 2, "accepted": 2},
        "b": {"proposed": 2, "accepted": 1},
    }


def test_json_holds_everything_and_is_what_explain_reads() -> None:
    stats = Stats(prompt_tokens=1)
    stats.add_pass(TIMES)
    stats.add_step(step([1]))
    trace = Trace(
        header={
            "outpace": "0", "model": "é", "ops": "reference", "threads": 1, "strategy": "none",
            "verification": "exact", "kv": {"format": "f32", "block_size": 4}, "seed": 1, "temperature": 0.0,
            "finish_reason": "length",
        },
        prompt=[0], tokens=[1], pieces=["日"], sources=[()], steps=[step([1])], stats=stats, prompt_pieces=["p"],
        texts={1: "日"}, logprobs=[TokenLogprob(1, -0.5, ((1, -0.5), (0, -1.5)))],
    )  # fmt: skip
    text = trace.to_json()
    assert "日" in text
    assert json.loads(text) == json.loads(json.dumps(trace.as_dict()))
    assert json.loads(text)["schema"] == SCHEMA
    assert json.loads(text)["logprobs"] == [[-0.5, [[1, -0.5], [0, -1.5]]]]
    assert "日" in explain(json.loads(text))
