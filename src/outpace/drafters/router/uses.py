"""What the router knows of each drafter in one request, and has decided to do with it."""

from __future__ import annotations

from dataclasses import dataclass, field

from outpace.drafters.router.acceptance import Acceptance, OpenProposal
from outpace.drafters.router.averages import Gain
from outpace.drafters.router.selection import Proposals

MAX_OPEN = 2  # proposals of a drafter that wait for the sequence's judgement
_FIRST_NODES = 4  # asked for of a drafter that nobody has asked yet: enough to tell what a longer chain would bring


@dataclass(slots=True)
class Use:
    """What the router knows of one drafter in one request, and what it has decided to do with it."""

    acceptance: Acceptance
    alone: Gain
    extra: Gain  # beside the leading drafter
    num_nodes: int = _FIRST_NODES  # to ask for
    ask_at: int = 0  # length of the sequence from which it is asked
    exploring: bool = False  # it is not expected to pay
    price: float = 0.0  # plain passes that the next question is expected to take
    credit: float = 0.0  # plain passes that may be lost to exploring
    credited_at: int = 0  # length of the sequence
    read: int = 0  # tokens of the sequence that it has seen
    open: list[OpenProposal] = field(default_factory=list)


@dataclass(slots=True)
class State:
    """One request's drafters, and the length of the sequence at which one of them is to be asked."""

    uses: list[Use]
    kind: int  # of sampling
    greedy: bool
    ask_at: int = 0
    leader: int = -1  # the drafter that would be asked if only one were; -1: none pays
    has_open: bool = False
    stand_in: int = -1  # the drafter that was asked because nobody else had a guess, in this step
    asked: list[int] = field(default_factory=list)  # drafters, in this step
    proposals: Proposals | None = None  # of this step
    unit: float = 0.0  # seconds of this request's part of a plain pass
    row: float = 0.0  # what one more row costs, in that unit


def judge(state: State, tokens: list[int]) -> None:
    """Let the sequence decide on the proposals that were waiting for it.

    A question that was not expected to pay earns back what verifying those of its guesses would have saved that the
    leading drafter did not propose as well.
    """
    length = len(tokens)
    state.has_open = False
    for use in state.uses:
        if use.open:
            for proposal in use.open:
                use.acceptance.learn(proposal.judge(tokens), length)
                if use.exploring:
                    use.credit += proposal.num_right - state.row * proposal.num_new
                    if use.credit >= use.price:  # it paid after all: go on asking
                        use.ask_at = state.ask_at = length
                proposal.num_right = proposal.num_new = 0
            use.open = [proposal for proposal in use.open if proposal.is_open]
            state.has_open = state.has_open or bool(use.open)
