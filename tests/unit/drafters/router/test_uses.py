from __future__ import annotations

import pytest

from outpace.drafters.router.acceptance import Acceptance, Counts, OpenProposal
from outpace.drafters.router.averages import Gain
from outpace.drafters.router.uses import State, Use, judge
from outpace.types.tree import DraftTree

TEXT = [1, 2, 3]


def state_of(*trees: DraftTree, **given: object) -> State:
    uses = [
        Use(Acceptance(Counts()), Gain(), Gain(), ask_at=99, open=[OpenProposal(tree, len(TEXT))], **given)  # type: ignore[arg-type]
        for tree in trees
    ]
    return State(uses, kind=0, greedy=True, ask_at=99, has_open=True, row=0.25)


def test_a_proposal_waits_until_the_sequence_has_refuted_it_or_come_to_its_end() -> None:
    state = state_of(DraftTree.chain([4, 5, 6], "x"), DraftTree.chain([7], "y"))
    judge(state, [*TEXT, 4])
    assert [len(use.open) for use in state.uses] == [1, 0]
    assert state.has_open
    judge(state, [*TEXT, 4, 5, 9])
    assert not state.has_open


@pytest.mark.parametrize(("price", "ask_at"), [(1.0, 5), (2.0, 99)])
def test_a_question_that_was_not_expected_to_pay_earns_what_its_guesses_would_have_saved(
    price: float, ask_at: int
) -> None:
    state = state_of(DraftTree.chain([4, 5], "x"), exploring=True, price=price, credit=-0.5)
    judge(state, [*TEXT, 4, 5])
    (use,) = state.uses
    assert use.credit == -0.5 + 2 - 2 * 0.25
    assert use.ask_at == state.ask_at == ask_at, "asked again at once where it paid after all"


def test_a_question_that_was_expected_to_pay_earns_no_credit() -> None:
    state = state_of(DraftTree.chain([4, 5], "x"), price=1.0)
    judge(state, [*TEXT, 4, 5])
    assert (state.uses[0].credit, state.uses[0].ask_at) == (0.0, 99)
