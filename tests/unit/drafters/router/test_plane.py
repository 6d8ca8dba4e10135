"""The worst points of the plane (docs/decisions/0007-router.md), in simulated seconds: no clock is read."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from outpace.drafters import Suffix
from outpace.drafters.router import Auto
from tests.unit.drafters.router.plane import (
    LENGTH,
    Guesser,
    Point,
    Process,
    Simulated,
    cheap_rows,
    constant,
    expensive_rows,
    judge,
    switching,
)
from tests.unit.drafters.router.simulator import Machine, Slow, run

BAD, GOOD = constant(0.05), constant(0.9)


def point(
    question: float, node: float, *texts: Process, rows=cheap_rows, confidence: str = "flat", answers: float = 1.0
) -> Point:
    return Point((Guesser(question, node, texts, confidence, answers),), rows)


@pytest.mark.parametrize(
    "point",
    [
        point(0.0, 0.2, GOOD, GOOD, confidence="true"),
        point(0.2, 0.0, GOOD, GOOD),
        point(0.5, 0.0, constant(0.95), constant(0.95)),
        point(0.05, 0.0, GOOD, GOOD, rows=expensive_rows, confidence="true"),
    ],
    ids=["a fifth of a pass a node", "a fifth of a pass a question", "half a pass a question", "costly rows"],
)
def test_from_token_64_of_a_first_request_auto_is_near_the_best_fixed_strategy(point: Point) -> None:
    for verdict in judge(point, range(2)):
        assert verdict.gain > 1.5
        assert verdict.best > 0.92


@pytest.mark.parametrize("rows", [cheap_rows, expensive_rows])
@pytest.mark.parametrize(("question", "node"), [(0.02, 0.002), (0.2, 0.0), (0.0, 0.2), (0.0, 0.5)])
def test_where_no_drafter_pays_auto_stays_within_a_fiftieth_of_plain(question: float, node: float, rows) -> None:
    for verdict in judge(point(question, node, BAD, BAD, rows=rows), range(2)):
        assert verdict.plain > 0.979
        assert verdict.whole_plain > 0.955, "a first request pays for the first probe of rows as well"


@pytest.mark.parametrize(("question", "node"), [(0.5, 0.0), (0.0, 0.35), (0.2, 0.0)])
def test_a_text_that_is_unlike_the_one_before_is_found_out_within_64_tokens(question: float, node: float) -> None:
    _, good, bad = judge(point(question, node, BAD, constant(0.95), BAD), range(2))
    assert good.best > 0.85
    assert bad.plain > 0.95


def test_a_drafter_that_is_right_now_and_then_is_used_then() -> None:
    turns = judge(point(0.0, 0.05, switching(0.95, 0.05, 80), switching(0.05, 0.95, 80)), range(2))
    assert min(turn.best for turn in turns) > 0.85
    assert min(turn.plain for turn in turns) > 1.05


@pytest.mark.parametrize("acceptance", [0.35, 0.4, 0.45])
def test_a_calibrated_drafter_that_pays_a_little_is_not_given_up_for_a_few_surprises(acceptance: float) -> None:
    """As with `eagle` on sampled prose: a wrong guess now and then is what its confidence has told beforehand."""
    cheap = Guesser(0.02, 0.002, (constant(0.6),) * 2, "true", answers=0.1)
    trained = Guesser(0.12, 0.05, (constant(acceptance),) * 2, "true", is_calibrated=True)
    for verdict in judge(Point((cheap, trained), lambda rows: 1.0 + 0.08 * (rows - 1)), range(4)):
        assert verdict.gain > 1.05
        assert verdict.best > 0.98


@pytest.mark.parametrize("is_calibrated", [True, False])
def test_where_a_calibrated_drafter_leads_one_step_in_four_is_learned_from(
    is_calibrated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn, learned = Auto._learn, list[int]()

    def noted(auto: Auto, *given: Any) -> None:
        learned.append(1)
        learn(auto, *given)

    monkeypatch.setattr(Auto, "_learn", noted)
    machine = Machine(slope=0.03)
    guesser = Guesser(0.1, 0.03, (constant(0.7),) * 2, "true", is_calibrated=is_calibrated)
    drafter = Simulated("x", guesser, machine, seed=4, prompt=1)
    experience = machine.experience()
    for text in range(2):
        drafter.text = text
        drafter.asked.clear()
        learned.clear()
        run(machine, Auto([drafter], experience, machine.clock), [([7], range(LENGTH))])
    if is_calibrated:
        assert 0.2 < len(learned) / len(drafter.asked) < 0.35
    else:
        assert len(learned) == len(drafter.asked)


def test_a_drafter_that_is_silent_most_of_the_time_costs_what_it_takes_when_it_speaks() -> None:
    for verdict in judge(point(0.0, 0.5, constant(0.4), constant(0.4), confidence="true", answers=0.25), range(2)):
        assert verdict.plain > 0.92


def test_a_second_drafter_is_asked_beside_a_good_one_only_for_what_it_adds() -> None:
    cheap = Guesser(0.02, 0.002, (GOOD, GOOD), "true", answers=0.25)
    second = Guesser(0.0, 0.2, (constant(0.8), constant(0.8)), "true")
    for verdict in judge(Point((cheap, second)), range(2)):
        assert verdict.best > 0.93


@pytest.mark.parametrize(("question", "node"), [(0.02, 0.0), (0.2, 0.0), (0.0, 0.2)])
def test_a_drafter_that_does_not_pay_is_asked_for_a_hundredth_of_the_time_and_never_given_up(question, node) -> None:
    machine = Machine()
    drafter = Simulated("x", Guesser(question, node, (constant(0.05),)), machine, seed=1, prompt=1)
    before = machine.now
    run(machine, Auto([drafter], machine.experience(), machine.clock), [([7], range(LENGTH))])
    assert machine.now > before
    late = [place for _, place, _ in drafter.asked if place > 100]
    spent = sum(question + node * nodes for _, place, nodes in drafter.asked if place > 100)
    assert spent < 0.01 * (LENGTH - 100) + question + node
    assert max(after - before for before, after in itertools.pairwise(late)) < 40


@pytest.mark.parametrize("kind", ["alone", "beside a drafter that pays"])
def test_a_drafter_that_turns_good_is_in_full_use_within_64_tokens(kind: str) -> None:
    """What other requests taught of it was bad: it has to be found out by questions that nothing is expected of."""
    machine = Machine(slope=0.03)
    texts = (constant(0.05), constant(0.95))
    drafter = Simulated("x", Guesser(0.0, 0.2, texts), machine, seed=2, prompt=50)
    others = [Slow(Suffix(), machine)] if kind != "alone" else []
    experience = machine.experience()
    for text in range(2):
        drafter.text = text
        outcome = run(
            machine, Auto([drafter, *others], experience, machine.clock), [(list(range(900, 950)), range(LENGTH))]
        )
    settled = [step for step in outcome.steps if step.position > 50 + 64]
    assert sum(len(step.tokens) for step in settled) / len(settled) > 2.0


def test_a_draft_model_that_pays_is_used_at_once() -> None:
    """As with Qwen2.5-Coder 1.5B and 0.5B: every guess takes a fifth of a pass, and 8 tokens of 10 are right."""
    machine = Machine(slope=0.03)
    drafter = Simulated("x", Guesser(0.0, 0.2, (constant(0.9),), "true"), machine, seed=3, prompt=1)
    outcome = run(machine, Auto([drafter], machine.experience(), machine.clock), [([7], range(LENGTH))])
    assert sum(len(step.tree) > 0 for step in outcome.steps[5:40]) > 30
    assert len(outcome.steps) < LENGTH / 2.5


def test_common_guesses_are_credited_once() -> None:
    """A second drafter that says what the first one says, at ten times the cost, is not asked beside it."""
    machine = Machine(slope=0.03)
    cheap, costly = (
        Simulated(name, Guesser(question, 0.0, (constant(0.9),)), machine, seed=4, prompt=1)
        for name, question in (("cheap", 0.02), ("costly", 0.2))
    )
    costly.known = cheap.known
    run(machine, Auto([costly, cheap], machine.experience(), machine.clock), [([7], range(LENGTH))], max_draft=4)
    assert len([place for _, place, _ in costly.asked if place > 64]) < 8
    assert len([place for _, place, _ in cheap.asked if place > 64]) > 20
