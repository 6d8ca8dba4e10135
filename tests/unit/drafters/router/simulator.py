"""A fake clock, a synthetic machine and a target that recites: the loop in simulated seconds."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from outpace.drafters.protocol import Drafter, SequenceView
from outpace.drafters.router.calibrate import Calibration
from outpace.drafters.router.experience import Experience
from outpace.runner import Pass
from outpace.trace import Step, Times
from outpace.types.tree import EMPTY, DraftTree
from tests.simulated import NO_PASS, SimulatedView, verify

PLAIN = 0.008  # seconds of a pass of one row


@dataclass
class Machine:
    """Seconds of passes. slope: what a further row costs, in passes of one row; noise: spread of log seconds."""

    slope: float = 0.07
    per_position: float = 1e-4  # of a plain pass, by position of context; half as much for every further row
    noise: float = 0.0
    outliers: float = 0.0  # chance of a pass that takes three times as long
    now: float = 0.0
    dice: random.Random = field(default_factory=lambda: random.Random(7))
    rows: Callable[[int], float] | None = None  # plain passes by rows, in place of `slope`

    def clock(self) -> float:
        return self.now

    def pass_seconds(self, parts: Sequence[tuple[int, int]]) -> float:
        rows = sum(own for own, _ in parts)
        context = sum(length * (1 + 0.5 * (own - 1)) for own, length in parts)
        own = self.rows(rows) if self.rows else 1 + self.slope * (rows - 1)
        return PLAIN * (own + self.per_position * context)

    def run(self, parts: Sequence[tuple[int, int]]) -> float:
        """Let a pass take place; return what it took."""
        seconds = self.pass_seconds(parts) * self.dice.lognormvariate(-0.5 * self.noise**2, self.noise)
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

    taps = ()

    def __init__(self, drafter: Drafter, machine: Machine, seconds: float = 1e-4, per_node: float = 1e-5) -> None:
        self.name, self._drafter, self._machine = drafter.name, drafter, machine
        self._seconds, self._per_node = seconds, per_node
        self.asked_at: list[int] = []  # length of the sequence, question by question

    def propose(self, sequences: Sequence[SequenceView], budgets: Sequence[int]) -> Sequence[DraftTree]:
        trees = self._drafter.propose(sequences, budgets)
        self.asked_at += [len(sequence.tokens) for sequence in sequences]
        self._machine.now += len(sequences) * self._seconds + self._per_node * sum(map(len, trees))
        return trees

    def observe(self, steps: Sequence[Step], passed: Pass) -> None:
        self._drafter.observe(steps, passed)

    def forget(self, request: int) -> None:
        self._drafter.forget(request)


@dataclass
class Outcome:
    """What a simulated run took, and what it did at each length of each sequence."""

    seconds: float
    steps: list[Step]

    def nodes(self, request: int = 0) -> dict[int, int]:
        """Return the number of verified nodes by position."""
        return {step.position: len(step.tree) for step in self.steps if step.request == request}


def run(
    machine: Machine,
    drafter: Drafter | None,
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
    max_draft: int = 16,
    on_step: Callable[[Step], None] | None = None,
) -> Outcome:
    """Write the sequences (prompt, output), all in one batch that shrinks as they end."""
    started = machine.now
    running = [
        SimulatedView.start(number, prompt, len(output), max_draft=max_draft)
        for number, (prompt, output) in enumerate(sequences)
    ]
    recited = [[*prompt, *output, -1] for prompt, output in sequences]
    steps: list[Step] = []
    while running:
        begun = machine.now
        left = [len(recited[s.id]) - 1 - len(s.tokens) for s in running]
        budgets = [max(0, min(max_draft, count - 1)) for count in left]
        trees = drafter.propose(running, budgets) if drafter else [EMPTY] * len(running)
        drafted = machine.now
        seconds = machine.run([(1 + len(tree), len(s.tokens)) for tree, s in zip(trees, running, strict=True)])
        times = Times(drafted - begun, seconds, 0.02 * PLAIN, 0.0)
        machine.now += times.verify
        new = []
        for sequence, tree in zip(running, trees, strict=True):
            whole = recited[sequence.id]
            step = verify(sequence, tree, lambda tokens, whole=whole: whole[min(len(tokens), len(whole) - 1)])
            step.times, step.batch = times, len(running)
            new.append(step)
        if drafter:
            drafter.observe(new, NO_PASS)
        for step in new if on_step else ():
            on_step(step)
        steps += new
        for sequence in [s for s in running if len(s.tokens) >= len(recited[s.id]) - 1]:
            if drafter:
                drafter.forget(sequence.id)
            running.remove(sequence)
    return Outcome(machine.now - started, steps)
