"""The forecast beside the real loop: held-out conversations, written again by the target with its new drafter.

The same prompts, seeds and ways to sample give the same sequences, so what a draft brings there can be counted in both
worlds: simulated from the sequence, and by the engine, step by step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from outpace.api import LanguageModel
from outpace.train.text.answers import in_order
from outpace.train.text.corpus import Conversation
from outpace.train.text.responses import drawn

TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class Decoded:
    """One conversation as the engine wrote it. steps, tokens: as in `Stats`, the prompt's step included."""

    kind: str
    sampled: bool
    tokens: int
    steps: int
    is_same: bool  # token by token, what it was before

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def decode(
    lm: LanguageModel, conversations: Sequence[Conversation], strategy: str, max_draft: int
) -> Iterator[Decoded]:
    """Write conversations again with drafts of `max_draft` tokens at most; yield each as it is done, in order.

    One at a time, and without shared prefixes: a prompt that is computed in two passes, or whose beginning is cached,
    has another first draft.
    """

    def write(job: tuple[int, Conversation]) -> Decoded:
        number, own = job
        prompt, response = own.tokens[: own.num_prompt].tolist(), own.tokens[own.num_prompt :].tolist()
        result = lm.generate(
            prompt,
            strategy=strategy,
            max_draft=max_draft,
            max_new_tokens=len(response),
            seed=own.seed,
            salt=number.to_bytes(8, "little"),
            **drawn(own.temperature),
        )
        return Decoded(own.kind, own.sampled, result.stats.tokens, result.stats.steps, result.tokens == response)

    yield from in_order(lm, enumerate(conversations), write, 1, lambda: True)


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of text, greedy or sampled: tokens per step, as forecast and as decoded."""

    kind: str
    sampled: bool
    texts: int
    tokens: int
    forecast: float
    real: float

    @property
    def ratio(self) -> float:
        """Forecast / real."""
        return self.forecast / self.real


@dataclass(frozen=True, slots=True)
class Check:
    """All rows, and those of all kinds together. different: conversations that were not written as before."""

    rows: tuple[Row, ...]
    totals: tuple[Row, ...]
    different: int

    @property
    def agrees(self) -> bool:
        """Whether forecast and real loop are within 5 %, greedy and sampled, on the very same sequences."""
        return not self.different and all(abs(row.ratio - 1) <= TOLERANCE for row in self.totals)


def compare(forecast: Mapping[tuple[str, bool], float], decoded: Sequence[Decoded]) -> Check:
    """Return forecast and reality side by side. forecast: tokens per step by kind, and whether sampled."""
    rows = []
    for kind, sampled in sorted({(own.kind, own.sampled) for own in decoded} & forecast.keys()):
        own = [one for one in decoded if (one.kind, one.sampled) == (kind, sampled)]
        tokens, steps = sum(one.tokens for one in own), sum(one.steps for one in own)
        rows.append(Row(kind, sampled, len(own), tokens, forecast[kind, sampled], tokens / steps))
    totals = [_total([row for row in rows if row.sampled == sampled]) for sampled in (False, True)]
    different = sum(not one.is_same for one in decoded)
    return Check(tuple(rows), tuple(row for row in totals if row is not None), different)


def _total(rows: Sequence[Row]) -> Row | None:
    """Return rows as one: all their tokens / all their steps."""
    if not rows:
        return None
    tokens = sum(row.tokens for row in rows)
    return Row(
        "all",
        rows[0].sampled,
        sum(row.texts for row in rows),
        tokens,
        tokens / sum(row.tokens / row.forecast for row in rows),
        tokens / sum(row.tokens / row.real for row in rows),
    )
