"""The plane on which the router is judged: what a drafter costs, how often it is right, how both change.

    python -m tests.unit.drafters.router.plane [--seeds 4] [--part NAME]

Prints the router relative to the best fixed strategy and to plain decoding at every point (docs/decisions/0007).
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from outpace.drafters.protocol import SequenceView
from outpace.drafters.router import Auto
from outpace.runner import Pass
from outpace.trace import Step
from outpace.types.tree import EMPTY, DraftTree
from tests.unit.drafters.router.simulator import PLAIN, Machine, run

LENGTH = 320  # tokens of a text
SETTLED = 64  # tokens after which the router must have found out
DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16)  # of the fixed strategies

Process = Callable[[int], float]  # place in the text -> acceptance of a guess for the token there


def constant(acceptance: float) -> Process:
    return lambda place: acceptance


def drifting(first: float, last: float) -> Process:
    return lambda place: first + (last - first) * min(place / LENGTH, 1.0)


def switching(on: float, off: float, period: int) -> Process:
    return lambda place: on if place // period % 2 == 0 else off


def cheap_rows(rows: int) -> float:
    """Passes of one row that a pass takes: 32 rows take two."""
    return 1.0 + (rows - 1) / 31


def expensive_rows(rows: int) -> float:
    """8 rows take two."""
    return 1.0 + (rows - 1) / 7


@dataclass(frozen=True)
class Guesser:
    """A drafter of a point: seconds in plain passes, acceptance along each of its texts, what its confidence says.

    confidence: "flat" (always 0.5), "true" (differs by token and is right) or "boastful" (its square root).
    answers: part of the stretches of 16 tokens in which it has an answer at all. is_calibrated: it says so itself.
    """

    question: float
    node: float
    texts: tuple[Process, ...]
    confidence: str = "flat"
    answers: float = 1.0
    is_calibrated: bool = False

    def known(self, seed: int, text: int) -> list[tuple[bool, float]]:
        """Return for each token whether it is guessed right, and with what confidence."""
        dice = random.Random(f"{seed} {text} {self.texts[text](0)} {self.question} {self.confidence}")
        known = []
        for place in range(LENGTH + 64):
            mean = self.texts[text](place)
            chance = mean if self.confidence == "flat" else dice.betavariate(2 * mean + 0.01, 2 * (1 - mean) + 0.01)
            told = {"flat": 0.5, "true": chance, "boastful": chance**0.5}[self.confidence]
            known.append((dice.random() < chance, told))
        return known

    def silent(self, seed: int, text: int) -> list[bool]:
        dice = random.Random(f"silent {seed} {text}")
        stretches = [dice.random() >= self.answers for _ in range(LENGTH // 16 + 8)]
        return [stretches[place // 16] for place in range(LENGTH + 64)]


class Simulated:
    """A guesser at work on one text after another."""

    taps = ()

    def __init__(self, name: str, guesser: Guesser, machine: Machine, seed: int, prompt: int) -> None:
        self.name, self.guesser, self.machine, self.prompt = name, guesser, machine, prompt
        self.known = [guesser.known(seed, text) for text in range(len(guesser.texts))]
        self.silent = [guesser.silent(seed, text) for text in range(len(guesser.texts))]
        self.text, self.is_calibrated = 0, guesser.is_calibrated
        self.asked: list[tuple[int, int, int]] = []  # text, place, nodes

    def propose(self, sequences: Sequence[SequenceView], budgets: Sequence[int]) -> list[DraftTree]:
        trees = []
        for sequence, budget in zip(sequences, budgets, strict=True):
            place = len(sequence.tokens) - self.prompt
            self.machine.now += PLAIN * self.guesser.question
            self.asked.append((self.text, place, budget))
            if self.silent[self.text][place] or not budget:
                trees.append(EMPTY)
                continue
            self.machine.now += PLAIN * self.guesser.node * budget
            known = self.known[self.text][place : place + budget]
            tokens = [place + i if right else 100_000 + place + i for i, (right, _) in enumerate(known)]
            trees.append(DraftTree.chain(tokens, self.name, [told for _, told in known]))
        return trees

    def observe(self, steps: Sequence[Step], passed: Pass) -> None: ...

    def forget(self, request: int) -> None: ...


@dataclass(frozen=True)
class Point:
    """One point of the plane."""

    guessers: tuple[Guesser, ...]
    rows: Callable[[int], float] = cheap_rows
    prompt: int = 50
    noise: float = 0.05

    def machine(self, seed: int) -> Machine:
        machine = Machine(noise=self.noise, dice=random.Random(seed))
        machine.rows = self.rows
        return machine

    def routed(self, seed: int) -> tuple[list[list[tuple[int, float]]], list[Simulated]]:
        """Return for each text the times at which its tokens were written; the texts share one experience."""
        machine = self.machine(seed)
        experience = machine.experience()
        drafters = [Simulated(f"d{i}", g, machine, seed, self.prompt) for i, g in enumerate(self.guessers)]
        texts = []
        for text in range(len(self.guessers[0].texts)):
            for drafter in drafters:
                drafter.text = text
            auto = Auto(drafters, experience, machine.clock)
            prompt = [200_000 + i for i in range(self.prompt)]
            begun = machine.now
            times: list[tuple[int, float]] = []

            def note(step: Step, times: list[tuple[int, float]] = times, begun: float = begun) -> None:
                times.append((step.position - self.prompt + len(step.tokens), machine.now - begun))

            run(machine, auto, [(prompt, range(LENGTH))], on_step=note)
            texts.append(times)
        return texts, drafters

    def fixed(self, seed: int, text: int, depth: int, who: Sequence[int]) -> list[tuple[int, float]]:
        """Return the times of asking `who` for `depth` nodes at every step and verifying whatever they say."""
        machine = self.machine(seed)
        known = [self.guessers[d].known(seed, text) for d in who]
        silent = [self.guessers[d].silent(seed, text) for d in who]
        place, now, times = 0, 0.0, []
        while place < LENGTH:
            budget = max(0, min(depth, LENGTH - place - 1))
            rows, best = 1, 0
            for d, own, quiet in zip(who, known, silent, strict=True):
                guesser = self.guessers[d]
                now += PLAIN * guesser.question
                if quiet[place]:
                    continue
                now += PLAIN * guesser.node * budget
                rows += budget
                right = next((i for i in range(budget) if not own[place + i][0]), budget)
                best = max(best, right)
            now += machine.pass_seconds([(rows, self.prompt + place)]) + 0.02 * PLAIN
            place += best + 1
            times.append((place, now))
        return times


def seconds(times: Sequence[tuple[int, float]], first: int) -> float:
    """Return what the tokens from `first` on took, a step's time spread over its tokens."""
    before = 0.0
    last_place, last_now = 0, 0.0
    for place, now in times:
        if place > first:
            before = last_now + (now - last_now) * (first - last_place) / (place - last_place)
            break
        last_place, last_now = place, now
    return times[-1][1] - before


@dataclass(frozen=True)
class Verdict:
    """The router at one point and text: relative to the best fixed strategy and to plain, from token 64 on; whole."""

    best: float
    plain: float
    whole_best: float
    whole_plain: float
    gain: float  # of the best fixed strategy relative to plain


def judge(point: Point, seeds: Sequence[int]) -> list[Verdict]:
    """Return a verdict for each text of the point, over all seeds together."""
    texts = len(point.guessers[0].texts)
    people = range(len(point.guessers))
    routed = [point.routed(seed)[0] for seed in seeds]
    verdicts = []
    for text in range(texts):
        results = {}
        for first in (SETTLED, 0):
            auto = sum(seconds(run_[text], first) for run_ in routed)
            plain = sum(seconds(point.fixed(seed, text, 0, ()), first) for seed in seeds)
            fixed = [
                sum(seconds(point.fixed(seed, text, depth, who), first) for seed in seeds)
                for who in [(d,) for d in people] + ([tuple(people)] if len(people) > 1 else [])
                for depth in DEPTHS
            ]
            results[first] = (min([plain, *fixed]) / auto, plain / auto, plain / min([plain, *fixed]))
        a, b = results[SETTLED], results[0]
        verdicts.append(Verdict(a[0], a[1], b[0], b[1], a[2]))
    return verdicts


COSTS = (  # plain passes of a question, and of a node
    (0.005, 0.0), (0.02, 0.002), (0.05, 0.0), (0.2, 0.0), (0.5, 0.0), (0.1, 0.1),
    (0.0, 0.02), (0.0, 0.05), (0.0, 0.1), (0.0, 0.2), (0.0, 0.35), (0.0, 0.5),
)  # fmt: skip
ACCEPTANCE = (0.05, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95)
CURVES = {"cheap rows": cheap_rows, "expensive rows": expensive_rows}
CONFIDENCES = ("flat", "true", "boastful")


def processes(chance: float) -> dict[str, tuple[Process, ...]]:
    """Return how acceptance may go on along a first text and those after it."""
    return {
        "constant": (constant(chance), constant(chance)),
        "drifting": (drifting(chance, 0.95 - 0.9 * chance), drifting(0.95 - 0.9 * chance, chance)),
        "switching": (switching(chance, 0.05, 80), switching(0.05, chance, 80)),
        "inherited": (constant(0.05), constant(chance), constant(0.05)),
    }


def alone(process: str, confidence: str, answers: float = 1.0) -> Iterator[tuple[str, Point]]:
    """Return the points of one drafter."""
    for rows, curve in CURVES.items():
        for question, node in COSTS:
            for chance in ACCEPTANCE:
                guesser = Guesser(question, node, processes(chance)[process], confidence, answers)
                yield f"{rows}, cost {question:g} + {node:g} n, acceptance {chance:g}", Point((guesser,), curve)


def beside() -> Iterator[tuple[str, Point]]:
    """Return the points of a drafter beside a cheap one, which is bad, good, or good where it has an answer."""
    for rows, curve in CURVES.items():
        for question, node in ((0.2, 0.0), (0.0, 0.05), (0.0, 0.2), (0.5, 0.0)):
            for chance in (0.05, 0.4, 0.8, 0.95):
                for other, answers in ((0.05, 1.0), (0.8, 0.25), (0.95, 1.0)):
                    cheap = Guesser(0.02, 0.002, (constant(other),) * 2, "true", answers)
                    second = Guesser(question, node, (constant(chance),) * 2, "true")
                    name = f"{rows}, cost {question:g} + {node:g} n, acceptance {chance:g}"
                    yield f"{name}, beside {other:g} in {answers:g}", Point((cheap, second), curve)


def parts() -> dict[str, Iterator[tuple[str, Point]]]:
    """Return the parts of the plane by name, each a series of named points."""
    single = {
        f"{process}, {confidence}": alone(process, confidence)
        for process in processes(0.5)
        for confidence in CONFIDENCES
    }
    return single | {"sparse": alone("constant", "true", answers=0.25), "two": beside()}


def show(part: str, seeds: int, worst: int, points: Iterator[tuple[str, Point]]) -> None:
    """Print a part's summary, text by text, with its worst points."""
    rows = [(name, text, v) for name, point in points for text, v in enumerate(judge(point, range(seeds)))]
    for text in sorted({text for _, text, _ in rows}):
        own = [(name, v) for name, of, v in rows if of == text]
        best, plain = sorted(v.best for _, v in own), sorted(v.plain for _, v in own)
        print(
            f"{part}, text {text}: {len(own)} points; auto / best fixed: median {statistics.median(best):.3f}, "
            f"5th percentile {best[len(best) // 20]:.3f}, minimum {best[0]:.3f}, {sum(b < 0.95 for b in best)} below "
            f"0.95; auto / plain: minimum {plain[0]:.3f}, {sum(p < 0.98 for p in plain)} below 0.98; whole text: "
            f"{min(v.whole_best for _, v in own):.3f}, {min(v.whole_plain for _, v in own):.3f}"
        )
        for name, v in [
            *sorted(own, key=lambda row: row[1].best)[:worst],
            *sorted(own, key=lambda row: row[1].plain)[:worst],
        ]:
            print(f"    {v.best:.3f}, {v.plain:.3f} (the best fixed: {v.gain:.2f}): {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--part", default="", help="only parts with this in their name")
    parser.add_argument("--worst", type=int, default=3, help="points to name")
    parser.add_argument("--every", type=int, default=1, help="one point in so many")
    options = parser.parse_args()
    for part, points in parts().items():
        if options.part in part:
            show(part, options.seeds, options.worst, itertools.islice(points, 0, None, options.every))


if __name__ == "__main__":
    main()
