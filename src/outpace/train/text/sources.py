"""What a run is made from, ready to answer: prompts without duplicates, held-out ones apart and unlike the others."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from outpace.api import LanguageModel, Result
from outpace.errors import UsageError
from outpace.measure.output_file import save
from outpace.measure.prompts import ranks
from outpace.tokenizer import Tokenizer
from outpace.train.text import prompts, synthesis
from outpace.train.text.answers import in_order
from outpace.train.text.corpus import Conversation, is_held_out, key_of
from outpace.train.text.duplicates import Seen, overlapping
from outpace.train.text.prompts import Prompt, encode
from outpace.train.text.responses import Source

_PER_SHARD = 64  # attempts to write a prompt
_BARREN = 16  # shards without a new prompt, after which the target has no more to say
_MAX_USER_TOKENS = 160


@dataclass(frozen=True, slots=True)
class Sources:
    """Prompts to answer: those to learn from and those to measure with. dropped: how many were not taken, and why."""

    train: list[Source]
    held_out: list[Source]
    dropped: dict[str, int]


class Writer:
    """The prompts that the target writes, in shards of a folder: a shard is `_PER_SHARD` attempts."""

    def __init__(self, lm: LanguageModel, folder: Path, seed: int) -> None:
        self._lm, self._folder, self._seed = lm, folder, seed
        self._turn = synthesis.UserTurn.of(lm.tokenizer)
        folder.mkdir(parents=True, exist_ok=True)
        self.prompts: list[Prompt] = []
        self.dropped = {"exact": 0, "near": 0, "unfit": 0}
        self._seen = Seen()
        self._num_shards = self._barren = 0
        while (path := self._path(self._num_shards)).exists():
            self._take([None if not line else prompts.parse([line], str(path))[0] for line in _lines(path)])

    def write(self, count: int | None, go_on: Callable[[], bool], at_once: int) -> Generator[int, None, None]:
        """Write until there are `count` prompts, and while `go_on` says so; yield how many there are by then."""

        def enough() -> bool:
            return self._barren >= _BARREN or (count is not None and len(self.prompts) >= count)

        attempts = itertools.count(self._num_shards * _PER_SHARD)
        pending: list[Prompt | None] = []
        ask = in_order(self._lm, attempts, self._attempt, at_once, lambda: not enough() and go_on())
        with closing(ask) as results:
            for result in results:
                pending.append(synthesis.prompt_from(result))
                if len(pending) == _PER_SHARD and not enough():
                    self._keep(pending)
                    pending = []
                yield len(self.prompts) + len(pending) - pending.count(None)
        if pending and not enough():
            self._keep(pending)
        if count is not None:
            del self.prompts[count:]
        yield len(self.prompts)

    def _attempt(self, number: int) -> Result:
        result: Result = self._lm.generate(
            list(self._turn.header),
            max_new_tokens=_MAX_USER_TOKENS,
            seed=key_of([self._seed & 0x7FFFFFFF, self._seed >> 31, number]),
            strategy="none",
            **synthesis.SAMPLING,
            **self._turn.stop,
        )
        return result

    def _keep(self, found: Sequence[Prompt | None]) -> None:
        """Write a shard: every attempt a line, empty where nothing came of it."""
        lines = ["" if prompt is None else prompt.to_json() for prompt in found]
        save(self._path(self._num_shards), "".join(f"{line}\n" for line in lines))
        self._take(found)

    def _take(self, found: Sequence[Prompt | None]) -> None:
        before = len(self.prompts)
        new, dropped = without_duplicates([prompt for prompt in found if prompt is not None], self._seen)
        self.prompts += new
        for reason, number in dropped.items():
            self.dropped[reason] += number
        self.dropped["unfit"] += found.count(None)
        self._num_shards += 1
        self._barren = self._barren + 1 if len(self.prompts) == before else 0

    def _path(self, shard: int) -> Path:
        return self._folder / f"{shard:05}.jsonl"


def without_duplicates(found: Sequence[Prompt], seen: Seen) -> tuple[list[Prompt], dict[str, int]]:
    """Return the prompts that are new, and how many were not: exact and near duplicates. `seen` takes them in."""
    new = []
    dropped = {"exact": 0, "near": 0}
    for prompt in found:
        reason = seen.add(prompt.text)
        if reason is None:
            new.append(prompt)
        else:
            dropped[reason] += 1
    return new, dropped


def sort_out(
    found: Sequence[Prompt],
    tokenizer: Tokenizer,
    *,
    excluded: Sequence[Prompt],
    max_prompt_tokens: int,
    held_out: float,
    num_checked: int,
    seed: int,
) -> Sources:
    """Return which prompts to answer. excluded: prompts that nothing may share words with.

    Held out is by the hash of a prompt's ids, so it stays held out whatever else is added; of these, `num_checked` are
    answered, spread over the kinds. Raises UsageError where too few are left.
    """
    ids = [encode(tokenizer, prompt.messages) for prompt in found]
    fits = [len(own) <= max_prompt_tokens for own in ids]
    apart = overlapping([prompt.text for prompt in found], [prompt.text for prompt in excluded]) if excluded else None
    kept = [i for i in range(len(found)) if fits[i] and not (apart and apart[i])]
    keys = np.array([key_of(ids[i]) for i in kept], np.uint64)
    away = is_held_out(keys, held_out, seed)
    if len(kept) > 1 and (not away.any() or away.all()):
        away = keys == keys.min()
    sources: list[Source] = [(found[i], int(key)) for i, key in zip(kept, keys, strict=True)]
    aside = [source for source, is_away in zip(sources, away, strict=True) if is_away]
    rest = [source for source, is_away in zip(sources, away, strict=True) if not is_away]
    shared = overlapping([_text(source) for source in rest], [_text(source) for source in aside])
    train = [source for source, is_shared in zip(rest, shared, strict=True) if not is_shared]
    if not train or not aside:
        raise UsageError(
            f"too few prompts are left to train on ({len(train)}) and to measure with ({len(aside)}) of {len(found)}: "
            "give more, or longer ones with --max-prompt-tokens"
        )
    dropped = {
        "too long": fits.count(False),
        "excluded": len(found) - len(kept) - fits.count(False),
        "like a held-out one": sum(shared),
    }
    return Sources(train, spread(aside, num_checked), dropped)


def spread(sources: Sequence[Source], count: int) -> list[Source]:
    """Return at most `count`: the first of every kind, then the second, and so on."""
    numbers = ranks(prompt.kind for prompt, _ in sources)
    return [sources[i] for i in sorted(range(len(sources)), key=numbers.__getitem__)][:count]


def _text(source: Source) -> str:
    assert isinstance(source[0], Prompt)
    return source[0].text


def some_of(conversations: Sequence[Conversation], count: int) -> list[Conversation]:
    """Return at most `count` conversations, evenly spaced."""
    places = np.unique(np.linspace(0, len(conversations) - 1, min(count, len(conversations))).astype(np.int64))
    return [conversations[int(place)] for place in places]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]
