from __future__ import annotations

from pathlib import Path

import pytest

from outpace.errors import UsageError
from outpace.train.ledger import FILE, SHARES, Ledger


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_shares_are_all_of_the_budget() -> None:
    assert sum(SHARES.values()) == pytest.approx(1)


def test_stages_facts_and_seconds_survive(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path, {"seed": 1})
    ledger.note("prompts", a=1)
    ledger.add_seconds("prompts", 2.5)
    ledger.finish("prompts", b=[2])
    ledger.add_seconds("responses", 4)
    again = Ledger.open(tmp_path, {"seed": 1})
    assert again.is_done("prompts")
    assert not again.is_done("responses")
    assert again.facts("prompts") == {"a": 1, "b": [2]}
    assert (again.seconds("prompts"), again.seconds("responses"), again.seconds("check")) == (2.5, 4.0, 0.0)


def test_other_settings_are_refused_with_every_difference(tmp_path: Path) -> None:
    Ledger.open(tmp_path, {"seed": 1, "kind": "eagle", "steps": None})
    with pytest.raises(UsageError, match=r"seed was 1 and is 2; steps was None and is 5") as told:
        Ledger.open(tmp_path, {"seed": 2, "kind": "eagle", "steps": 5})
    assert "kind" not in str(told.value)
    assert "--out" in str(told.value)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 9}', '{"schema": 1, "stages": 3, "made_with": {}}'])
def test_a_damaged_ledger_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(UsageError, match="damaged"):
        Ledger.open(tmp_path, {})


def test_a_stage_may_take_its_share_of_what_is_left(tmp_path: Path) -> None:
    clock = Clock()
    ledger = Ledger.open(tmp_path, {}, clock)
    timer = ledger.begin("prompts", 1000)
    assert timer.allowed == pytest.approx(100)
    clock.now += 60
    assert timer.is_left
    clock.now += 40
    assert not timer.is_left
    timer.keep()
    ledger.finish("prompts")
    assert ledger.begin("held-out", 1000).allowed == pytest.approx(900 * 0.05 / 0.9)


def test_time_that_a_stage_leaves_goes_to_those_after_it(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path, {})
    for stage in ("prompts", "held-out", "responses"):
        ledger.finish(stage)
    assert ledger.begin("training", 110).allowed == pytest.approx(110 * 45 / 55)


def test_an_interrupted_stage_has_what_it_was_first_given_less_what_it_took(tmp_path: Path) -> None:
    clock = Clock()
    timer = Ledger.open(tmp_path, {}, clock).begin("prompts", 1000)
    clock.now += 70
    timer.keep()
    clock.now += 500  # killed, and started again later
    again = Ledger.open(tmp_path, {}, clock).begin("prompts", 1000)
    assert again.allowed == timer.allowed
    assert again.taken == pytest.approx(70)


def test_a_little_time_is_not_worth_writing_down(tmp_path: Path) -> None:
    clock = Clock()
    ledger = Ledger.open(tmp_path, {}, clock)
    timer = ledger.begin("training", 1000)
    clock.now += 9
    timer.keep(at_least=10)
    assert ledger.seconds("training") == 0
    clock.now += 2
    timer.keep(at_least=10)
    assert (ledger.seconds("training"), timer.taken) == (11, 11)


def test_an_overdrawn_budget_leaves_half_of_its_share_to_every_stage(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path, {})
    ledger.add_seconds("prompts", 150)
    ledger.finish("prompts")
    assert ledger.begin("responses", 100).allowed == pytest.approx(15)
    assert ledger.begin("training", 100).allowed == pytest.approx(22.5)


def test_up_to_a_last_stage_the_budget_is_shared_by_those_before_it(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path, {})
    for stage in ("prompts", "held-out", "responses"):
        ledger.finish(stage)
    assert ledger.begin("training", 110, "training").allowed == pytest.approx(110)
    assert ledger.begin("check", 110).allowed == pytest.approx(110 * 10 / 55)


def test_what_decides_about_text_alone_may_change_once_the_text_is_there(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path, {"seed": 1, "ops": "native"})
    ledger.finish("held-out")
    with pytest.raises(UsageError, match="ops was 'native' and is 'reference'"):
        Ledger.open(tmp_path, {"seed": 1, "ops": "reference"}, only_for_text=("ops",))
    ledger.finish("responses")
    there = Ledger.open(tmp_path, {"seed": 1, "ops": "reference"}, only_for_text=("ops",))
    there.finish("training")
    with pytest.raises(UsageError, match="seed was 1 and is 2"):
        Ledger.open(tmp_path, {"seed": 2, "ops": "reference"}, only_for_text=("ops",))
    assert Ledger.open(tmp_path, {"seed": 1, "ops": "native"}).is_done("training"), "the first machine's stays"
