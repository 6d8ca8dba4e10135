from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from outpace.errors import UsageError
from outpace.train.options import TrainOptions, budget_seconds


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), (" 2 h ", 7200)])
def test_a_budget_is_a_number_with_a_unit(text: str, seconds: float) -> None:
    assert budget_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "0s", "-3m", "1d", "1h30m", "nan s"])
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--budget"):
        TrainOptions(kind="eagle", budget=text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "hydra"},
        {"num_prompts": 0},
        {"steps": 0},
        {"batch_tokens": 0},
        {"max_tokens": 7},
        {"batch": 0},
        {"held_out": 0.0},
        {"held_out": 0.9},
        {"num_checked": 0},
        {"max_draft": 6},
        {"max_draft": 0},
        {"seed": -1},
        {"learning_rate": 0.0},
        {"prompts": Path("a"), "texts": Path("b")},
        {"prompts": Path("a"), "num_prompts": 3},
        {"texts": Path("a"), "num_prompts": 3},
        {"texts": Path("a"), "num_responses": 3},
        {"texts": Path("a"), "exclude": Path("b")},
    ],
    ids=str,
)
def test_what_cannot_work_or_would_be_ignored_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        TrainOptions(**{"kind": "eagle", **wrong})


def test_options_are_plain_json() -> None:
    values = TrainOptions(kind="block", prompts=Path("a/b.jsonl"), num_responses=9).as_dict()
    assert json.loads(json.dumps(values)) == values
    assert (values["kind"], values["prompts"], values["num_responses"]) == ("block", "a/b.jsonl", 9)


def test_only_heads_are_trained_with_their_target_and_what_belongs_to_it_needs_it() -> None:
    assert TrainOptions(kind="medusa", joint=True).joint_settings.rank == 32
    own = TrainOptions(kind="medusa", joint=True, rank=8, heads_weight=0.5).joint_settings
    assert (own.rank, own.alpha, own.heads_weight) == (8, 8.0, 0.5)
    with pytest.raises(UsageError, match="--joint would be ignored by eagle"):
        TrainOptions(kind="eagle", joint=True)
    for name, value in (
        ("rank", 8),
        ("heads_first", 0.1),
        ("target_learning_rate", 1e-3),
        ("heads_weight", 0.1),
        ("merge", True),
    ):
        with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} would be ignored without --joint"):
            TrainOptions(kind="medusa", **{name: value})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="heads_first"):
        TrainOptions(kind="medusa", joint=True, heads_first=2.0)
