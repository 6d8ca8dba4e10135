"""Measure what a level of the `eagle` drafter costs, in plain passes of its target: the first one, and each further.

The drafter is asked for a chain of 1 to 5 tokens before every pass, how many is drawn anew, and none of them is
verified: so every pass is a plain one, and every draft begins as it does in a text, behind a pass that has taken the
caches. Medians of wall time and of the working thread's processor time; a further level is what each token of the
longest chains adds to the shortest.

    python -m benchmarks.levels [-m MODEL] [--drafter FILE] [--threads 2] [--tokens 400] [--temperature 0]
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import outpace
from outpace.drafters.eagle import EagleDrafter
from outpace.drafters.growth import Shape
from outpace.drafters.protocol import SequenceView
from outpace.runner import Pass
from outpace.trace import Step
from outpace.types.tree import EMPTY, DraftTree
from outpace.weights.catalog import DEFAULT

LENGTHS = (1, 2, 3, 4, 5)
PROMPT = "Write a letter to a friend about a week that you spent on a small island in the north."


@dataclass(slots=True)
class Asked:
    """Asks a drafter for chains of different lengths, and keeps what they took to itself, with the guesses.

    seconds[n]: wall and processor time of each draft of n tokens.
    """

    drafter: EagleDrafter
    clock: Callable[[], float]
    name: str = "asked"
    dice: random.Random = field(default_factory=lambda: random.Random(0))
    seconds: dict[int, list[tuple[float, float]]] = field(default_factory=lambda: {n: [] for n in LENGTHS})

    @property
    def taps(self) -> tuple[int, ...]:
        return self.drafter.taps

    def propose(self, sequences: Sequence[SequenceView], budgets: Sequence[int]) -> list[DraftTree]:
        wanted = min(self.dice.choice(LENGTHS), *budgets)
        started, worked = time.perf_counter(), self.clock()
        (tree,) = self.drafter.propose(sequences, [wanted])
        took = time.perf_counter() - started, self.clock() - worked
        if len(tree):
            self.seconds[len(tree)].append(took)
        return [EMPTY]

    def observe(self, steps: Sequence[Step], passed: Pass) -> None:
        self.drafter.observe(steps, passed)

    def forget(self, request: int) -> None:
        self.drafter.forget(request)


def measure(lm: outpace.LanguageModel, tokens: int, temperature: float) -> str:
    """Return the table of one kind of request."""
    drafter = lm.loaded.trained
    if not isinstance(drafter, EagleDrafter):
        raise SystemExit("this model has no eagle drafter: give one with --drafter")
    drafter.shape, drafter.branches = Shape(1, 0.0, 0.0), 1  # chains, however unlikely
    asked = Asked(drafter, lm.runner.ops.clock)
    result = lm.generate(
        [{"role": "user", "content": PROMPT}],
        strategy=asked,
        max_new_tokens=tokens,
        ignore_eos=True,
        trace=True,
        seed=1,
        temperature=temperature,
    )
    assert result.trace is not None
    plain = [step.times for step in result.trace.steps[1:]]
    lines = [f"temperature {temperature:g}, {len(plain)} passes, instruction set {lm.runner.ops.isa}"]
    for name, which in (("wall", 0), ("processor", 1)):
        passes = [times.worked.forward if which and times.worked else times.forward for times in plain]
        drafts = {n: statistics.median([took[which] for took in found]) for n, found in asked.seconds.items() if found}
        first, last = min(drafts), max(drafts)
        unit, further = statistics.median(passes), (drafts[last] - drafts[first]) / max(last - first, 1)
        first_level = f"first level {1e3 * drafts[first]:.2f} ms = {drafts[first] / unit:.3f} of it"
        each = f"each further {1e3 * further:.2f} ms = {further / unit:.3f}"
        lines.append(f"{name:9}  pass {1e3 * unit:.2f} ms; {first_level}; {each}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default=DEFAULT)
    parser.add_argument("--drafter", default=None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--temperature", type=float, default=0.0)
    given = parser.parse_args(arguments)
    lm = outpace.load(given.model, drafter=given.drafter, threads=given.threads)
    print(measure(lm, given.tokens, given.temperature))


if __name__ == "__main__":
    main()
