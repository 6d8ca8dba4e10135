"""A target without a network: the loop around a drafter, for tests of drafters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from outpace.drafters.protocol import Drafter
from outpace.engine.verify import match
from outpace.runner import Pass
from outpace.trace import Step, Times
from outpace.types import Request
from outpace.types.tree import DraftTree
from tests.decoding import request

NO_PASS = Pass((), None, {}, ())  # what a target without a network computes

# The target's token after a text: any pure function.
Target = Callable[[Sequence[int]], int]


@dataclass
class SimulatedView:
    """One request as a drafter sees it."""

    id: int
    request: Request
    tokens: list[int]
    table: None = None
    warnings: list[str] = field(default_factory=list)

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    @classmethod
    def start(
        cls,
        number: int,
        prompt: Sequence[int],
        max_new_tokens: int = 1000,
        prediction: Sequence[int] = (),
        max_draft: int = 16,
    ) -> SimulatedView:
        options = {"max_new_tokens": max_new_tokens, "prediction": tuple(prediction) or None, "max_draft": max_draft}
        return cls(number, request(prompt, **options), list(prompt))

    @property
    def output(self) -> list[int]:
        return self.tokens[len(self.request.prompt) :]


@dataclass
class Run:
    """What `simulate` saw."""

    output: list[int] = field(default_factory=list)
    trees: list[DraftTree] = field(default_factory=list)

    @property
    def tokens_per_step(self) -> float:
        return len(self.output) / len(self.trees)


def verify(sequence: SimulatedView, tree: DraftTree, target: Target) -> Step:
    """Do one step's forward, verify and commit: the sequence's tokens grow."""
    position = len(sequence.tokens)
    target_tokens = [
        target(sequence.tokens + [tree.tokens[n] for n in tree.path(node)]) for node in range(-1, len(tree))
    ]
    path, last = match(tree, target_tokens)
    written = [*(tree.tokens[node] for node in path), last]
    sequence.tokens += written
    return Step(sequence.id, position, 1, tree, target_tokens, path, written, Times(0.0, 0.0, 0.0, 0.0))


def simulate(drafter: Drafter, target: Target, prompt: Sequence[int], num_tokens: int, budget: int = 8) -> Run:
    """Generate with the drafter; budgets shrink towards the end as the real loop's do."""
    sequence = SimulatedView.start(1, prompt, num_tokens)
    run = Run()
    while (left := num_tokens - len(sequence.output)) > 0:
        [tree] = drafter.propose([sequence], [min(budget, left - 1)])
        run.trees.append(tree)
        drafter.observe([verify(sequence, tree, target)], NO_PASS)
    drafter.forget(sequence.id)
    run.output = sequence.output
    return run


def plain(target: Target, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """Return what the target writes by itself."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(target(tokens))
    return tokens[len(prompt) :]


def reciting(text: Sequence[int]) -> Target:
    """Return the target that writes `text` over and over, at every place what stands there."""
    return lambda tokens: text[len(tokens) % len(text)]


def hashing(vocab_size: int, order: int = 2) -> Target:
    """Return the target whose token is a fixed scramble of the last `order` tokens."""

    def target(tokens: Sequence[int]) -> int:
        state = 1
        for token in tokens[-order:]:
            state = (state * 6364136223846793005 + token + 1442695040888963407) % 2**64
        return (state >> 33) % vocab_size

    return target
