"""Small tasks with one right answer each, written for this project: sums, copies and edits that a small model can do.

What they cannot say is whether a text is good; what they can say is whether a faster way to decode, or a smaller model,
still does what the original does. Each kind is a few templates filled by a fixed generator, so the set is the same
everywhere, and each prompt holds two solved examples: the form of an answer is not what is asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from outpace.errors import TokenizerError
from outpace.tokenizer import Tokenizer

KINDS = ("arithmetic", "copy", "edit")
MAX_NEW_TOKENS = 48  # enough for every answer

_NUMBER = re.compile(r"-?\d+")
_QUOTES = " \t\"'`*"
_NAMES = ("Anna", "Tom", "Mia", "Paul", "Lena", "Ben", "Clara", "Jonas")
_THINGS = ("a red book", "two old maps", "the blue lamp", "a loaf of bread", "nine green apples", "the small key")
_PLACES = ("in the kitchen", "at the station", "near the river", "behind the house", "under the bridge", "by the door")
_VERBS = ("found", "lost", "painted", "carried", "sold", "hid")
_TIMES = ("this morning", "last night", "on Monday", "before lunch", "after the rain")


@dataclass(frozen=True, slots=True)
class Task:
    """A question as the turns of a chat, user and assistant in turn, and the answer that is right."""

    kind: str
    turns: tuple[str, ...]
    answer: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """Return the prompt as a chat."""
        return [{"role": role, "content": turn} for role, turn in zip(cycle(("user", "assistant")), self.turns)]

    def encode(self, tokenizer: Tokenizer) -> list[int]:
        """Return its token ids: as a chat, or as lines of raw text for a model without a chat template."""
        try:
            return tokenizer.encode_chat(self.messages)
        except TokenizerError:
            return tokenizer.encode("\n".join(self.turns) + "\n")

    def is_right(self, text: str) -> bool:
        """Whether a response holds the answer: a sum as the last number of its first line, other text as a line."""
        lines = [line.strip(_QUOTES) for line in text.strip().splitlines() if line.strip()]
        if not lines:
            return False
        if self.kind == "arithmetic":
            return _NUMBER.findall(lines[0])[-1:] == [self.answer]
        return self.answer in lines


def tasks(count: int = 24, seed: int = 0) -> list[Task]:
    """Return `count` tasks of each kind; a longer set begins with the shorter ones of the same seed."""
    makers = {"arithmetic": _sum, "copy": _copy, "edit": _edit}
    found = []
    for number, kind in enumerate(KINDS):
        rng = np.random.default_rng([seed, number])
        found += [_task(kind, [makers[kind](rng) for _ in range(3)]) for _ in range(count)]
    return found


def exact_match(tasks: Iterable[Task], texts: Iterable[str]) -> dict[str, float]:
    """Return the share of right answers by kind; texts: the response to each task, in order."""
    right: dict[str, list[bool]] = {}
    for task, text in zip(tasks, texts, strict=True):
        right.setdefault(task.kind, []).append(task.is_right(text))
    return {kind: sum(found) / len(found) for kind, found in right.items()}


def repetition(sequences: Iterable[Sequence[int]], size: int = 4) -> float:
    """Return the share of runs of `size` tokens that their sequence had before (1 - distinct-n); 0 without runs."""
    total = repeated = 0
    for tokens in sequences:
        runs = list(zip(*(islice(tokens, i, None) for i in range(size)), strict=False))
        total += len(runs)
        repeated += len(runs) - len(set(runs))
    return repeated / total if total else 0.0


def _task(kind: str, pairs: Sequence[tuple[str, str]]) -> Task:
    turns = [turn for pair in pairs for turn in pair]
    return Task(kind, tuple(turns[:-1]), turns[-1])


def _sum(rng: np.random.Generator) -> tuple[str, str]:
    a, b = (int(x) for x in rng.integers(1, 10, 2))
    if rng.random() < 0.5:
        return f"What is {a} + {b}?", str(a + b)
    a, b = max(a, b), min(a, b)
    return f"What is {a} - {b}?", str(a - b)


def _copy(rng: np.random.Generator) -> tuple[str, str]:
    sentence = " ".join(_sentence(rng))
    return f"Repeat this sentence: {sentence}", sentence


def _edit(rng: np.random.Generator) -> tuple[str, str]:
    parts = _sentence(rng)
    new = _draw(rng, [name for name in _NAMES if name != parts[0]])
    return f"Replace {parts[0]} with {new}: {' '.join(parts)}", " ".join([new, *parts[1:]])


def _sentence(rng: np.random.Generator) -> list[str]:
    name, verb, thing, place, time = (_draw(rng, words) for words in (_NAMES, _VERBS, _THINGS, _PLACES, _TIMES))
    return [name, verb, thing, place, f"{time}."]


def _draw(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]
