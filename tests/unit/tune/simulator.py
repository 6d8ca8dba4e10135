"""A fake clock, a synthetic machine and a target that recites: the loop in simulated seconds."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from outpace.drafters.protocol import Drafter
from outpace.drafters.protocol import SequenceView as View
from outpace.trace import Step, Times
from outpace.tree import EMPTY, DraftTree
from outpace.tune.calibrate import Calibration
from outpace.tune.experience import Experience
from tests.simulated import SimulatedView, verify

PLAIN = 0.008  # seconds of a pass of one row


@dataclass
class Machine:
    """Seconds of passes. slope: what a further row costs, in passes of one row; noise: spread of log seconds."""

    slope: float = 0.07
    reach: float = 1e-4  # of a plain pass, a position and row
    noise: float = 0.0
    outliers: float = 0.0  # chance of a pass that takes three times as long
    now: float = 0.0
    dice: random.Random = field(default_factory=lambda: random.Random(7))

    def clock(self) -> float:
        return self.now

    def pass_seconds(self, parts: Sequence[tuple[int, int]]) -> float:
        rows = sum(own for own, _ in parts)
        reach = sum(context * (1 + 0.5 * (own - 1)) for own, context in parts)
        return PLAIN * (1 + self.slope * (rows - 1) + self.reach * reach)

    def run(self, parts: Sequence[tuple[int, int]]) -> float:
        """Let a pass take place; return what it took."""
        seconds = self.pass_seconds(parts) * self.dice.lognormvariate(0.0, self.noise)
        if self.dice.random() < self.outliers:
            seconds *= 3
        self.now += seconds
        return seconds

    def probe(self, rows: int, context: int) -> float:
        return self.run([(rows, context)])

    def experience(self) -> Experience:
        """Return what a router of this machine begins with."""
        experience = Experience()
        experience.calibration = Calibration(experience.cost, self.probe, 1024, clock=self.clock)
        return experience


class Slow:
    """A drafter that takes simulated time: per question, and per node that it proposes."""

    def __init__(self, drafter: Drafter, machine: Machine, seconds: float = 1e-4, per_node: float = 1e-5) -> None:
        self.name, self._drafter, self._machine = drafter.name, drafter, machine
        self._seconds, self._per_node = seconds, per_node
        self.asked_at: list[int] = []  # length of the text, question by question

    def propose(self, views: Sequence[View], budgets: Sequence[int]) -> Sequence[DraftTree]:
        trees = self._drafter.propose(views, budgets)
        self.asked_at += [len(view.tokens) for view in views]
        self._machine.now += len(views) * self._seconds + self._per_node * sum(map(len, trees))
        return trees

    def observe(self, steps: Sequence[Step]) -> None:
        self._drafter.observe(steps)

    def forget(self, request: int) -> None:
        self._drafter.forget(request)


@dataclass
class Outcome:
    """What a simulated run took, and what it did at each length of each text."""

    seconds: float
    steps: list[Step]

    def nodes(self, request: int = 0) -> dict[int, int]:
        """Return the number of verified nodes by position."""
        return {step.position: len(step.tree) for step in self.steps if step.request == request}


def run(
    machine: Machine,
    drafter: Drafter | None,
    texts: Sequence[tuple[Sequence[int], Sequence[int]]],
    max_draft: int = 16,
    on_step: Callable[[Step], None] | None = None,
) -> Outcome:
    """Write the texts (prompt, output), all in one batch that shrinks as they end."""
    started = machine.now
    views = [SimulatedView.start(number, prompt, len(output)) for number, (prompt, output) in enumerate(texts)]
    recited = [[*prompt, *output, -1] for prompt, output in texts]
    steps: list[Step] = []
    while views:
        begun = machine.now
        left = [len(recited[view.id]) - 1 - len(view.tokens) for view in views]
        budgets = [max(0, min(max_draft, count - 1)) for count in left]
        trees = drafter.propose(views, budgets) if drafter else [EMPTY] * len(views)
        drafted = machine.now
        seconds = machine.run([(1 + len(tree), len(view.tokens)) for tree, view in zip(trees, views, strict=True)])
        times = Times(drafted - begun, seconds, 0.02 * PLAIN, 0.0)
        machine.now += times.verify
        new = []
        for view, tree in zip(views, trees, strict=True):
            text = recited[view.id]
            step = verify(view, tree, lambda tokens, text=text: text[min(len(tokens), len(text) - 1)])
            step.times, step.batch = times, len(views)
            new.append(step)
        if drafter:
            drafter.observe(new)
        steps += new
        for view in [view for view in views if len(view.tokens) >= len(recited[view.id]) - 1]:
            if drafter:
                drafter.forget(view.id)
            views.remove(view)
    return Outcome(machine.now - started, steps)
