from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from outpace.drafters import Prediction
from outpace.drafters.router import Auto, Experience
from outpace.drafters.router.questions import Questions
from outpace.engine.decode import Decoder
from outpace.types.tree import EMPTY, DraftTree
from tests.decoding import decode, request, sequence_of, tiny_runner
from tests.simulated import NO_PASS, SimulatedView, reciting, verify


class Fragile:
    """A drafter that fails at some requests, in one of its methods."""

    name = "fragile"

    def __init__(self, where: str, requests: set[int], taps: tuple[int, ...] = ()) -> None:
        self.where, self.requests, self.taps = where, requests, taps
        self.asked: list[int] = []
        self.shown: list[int] = []
        self.forgotten: list[int] = []

    def propose(self, sequences: Sequence[Any], budgets: Sequence[int]) -> list[DraftTree]:
        ids = [sequence.id for sequence in sequences]
        self.asked += ids
        if self.where == "propose" and self.requests & {*ids}:
            raise ValueError("no idea")
        if self.where == "too much":
            budgets = [budget + (id in self.requests) for id, budget in zip(ids, budgets, strict=True)]
        return [DraftTree.chain([7] * budget, self.name) for budget in budgets]

    def observe(self, steps: Sequence[Any], passed: Any) -> None:
        ids = [step.request for step in steps] + [part.id for part in passed.batch if self.taps]
        self.shown += ids
        if self.where == "observe" and self.requests & {*ids}:
            raise ValueError("no idea")

    def forget(self, request: int) -> None:
        self.forgotten.append(request)
        if self.where == "forget":
            raise ValueError("no idea")


def two(questions: Questions) -> list[SimulatedView]:
    views = [SimulatedView.start(number, [1, 2, 3]) for number in range(2)]
    for view in views:
        questions.begin(view)
    return views


@pytest.mark.parametrize("where", ["propose", "too much"])
def test_only_the_request_that_it_fails_for_goes_without_its_guesses(where: str) -> None:
    drafter = Fragile(where, {1})
    questions = Questions(drafter)
    views = two(questions)
    trees = questions.propose(views, [2, 2])
    assert [len(tree) for tree in trees] == [2, 0]
    assert trees[1] == EMPTY
    assert questions.failed == {1}
    assert views[0].warnings == []
    (warning,) = views[1].warnings
    assert warning.startswith("drafter 'fragile' failed and was switched off: ")
    assert drafter.forgotten == [1]


def test_steps_of_a_request_that_it_failed_for_are_not_shown_to_it() -> None:
    drafter = Fragile("propose", {1})
    questions = Questions(drafter)
    views = two(questions)
    questions.propose(views, [2, 2])
    questions.observe([verify(view, EMPTY, reciting([7])) for view in views], NO_PASS)
    assert drafter.shown == [0]


def test_one_that_cannot_learn_is_switched_off_for_all_that_it_was_shown() -> None:
    questions = Questions(Fragile("observe", {0}))
    views = two(questions)
    questions.observe([verify(view, EMPTY, reciting([7])) for view in views], NO_PASS)
    assert questions.failed == {0, 1}
    assert [len(view.warnings) for view in views] == [1, 1]


def test_a_failure_before_the_first_question_is_told_at_the_first() -> None:
    questions = Questions(Fragile("observe", {5}))
    view = SimulatedView.start(5, [1, 2, 3])
    questions.observe([verify(view, EMPTY, reciting([7]))], NO_PASS)
    assert not view.warnings
    questions.begin(view)
    assert len(view.warnings) == 1


def test_a_request_that_ended_leaves_nothing() -> None:
    questions = Questions(Fragile("forget", {0}))
    (view, _) = two(questions)
    questions.forget(0)
    assert len(view.warnings) == 1
    questions.forget(1)
    assert not questions.failed
    assert not questions._views


@pytest.mark.parametrize("where", ["propose", "observe"])
@pytest.mark.parametrize("taps", [(), (1,)])
def test_in_the_loop_the_router_goes_on_with_the_others(where: str, taps: tuple[int, ...]) -> None:
    prompt = [5, 6, 7, 8] * 8
    plain = decode(tiny_runner(), [prompt], max_new_tokens=60)[0].output.tokens
    target = tiny_runner()
    fragile = Fragile(where, set(range(100)), taps)
    slow, quick = ((unit * i for i in itertools.count()).__next__ for unit in (1e-3, 1e-6))  # of passes, and of drafts
    auto = Auto([fragile, Prediction(plain)], Experience(), quick)
    loop = Decoder(target, clock=slow)
    sequence = sequence_of(request(prompt, max_new_tokens=60), target, drafter=auto)
    loop.add([sequence])
    list(loop.run())
    assert sequence.output.tokens == plain
    assert sequence.drafter is auto, "it was not switched off"
    assert len(sequence.stats.warnings) == 1
    assert "'fragile'" in sequence.stats.warnings[0]
    assert set(sequence.stats.proposed) == {"prediction"}
    assert len(fragile.asked) <= 1
