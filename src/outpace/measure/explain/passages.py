"""Where drafts did well: the text cut into passages, each with its tokens per step, and a sentence about it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

Kind = Literal["prose", "list", "code", "table", "heading"]

_ITEM = re.compile(r"^[^\S\n]*(?:[-*+•–]|\d{1,3}[.)])\s", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]*]*\s+(?=[\"'“‘(\[*]*[^\W\d_a-z])")
_MIN_TOKENS = 8  # shorter passages say nothing
_CLEARLY = 1.3  # times more tokens per step
_WELL, _BADLY = 2.5, 1.5  # tokens per step


@dataclass(frozen=True, slots=True)
class Passage:
    """Tokens [start, end) of the output. steps: how many it took; a step that wrote k tokens counts 1/k for each."""

    kind: Kind
    start: int
    end: int
    steps: float
    begins: str  # its first words

    @property
    def tokens(self) -> int:
        """Tokens of the passage."""
        return self.end - self.start

    @property
    def tokens_per_step(self) -> float:
        """Tokens / steps of the passage."""
        return self.tokens / self.steps if self.steps else 0.0

    def as_dict(self) -> dict[str, object]:
        """Return the passage as plain JSON values."""
        return {
            "kind": self.kind,
            "start": self.start,
            "end": self.end,
            "steps": self.steps,
            "tokens_per_step": self.tokens_per_step,
            "begins": self.begins,
        }


def passages(pieces: Sequence[str], shares: Sequence[float]) -> list[Passage]:
    """Cut a text into paragraphs, lists, code and tables; a lonely paragraph into sentences, a lonely list into items.

    shares[i]: the part of a step that token i took.
    """
    text = "".join(pieces)
    parts = _parts(text) or [("prose", 0)]
    if len(parts) == 1:
        parts = _finer(parts[0][0], text)
    first = _first_tokens(pieces, [start for _, start in parts])
    first[0] = 0
    found = []
    for (kind, start), begin, end in zip(parts, first, [*first[1:], len(pieces)], strict=True):
        if begin < end:
            found.append(Passage(kind, begin, end, sum(shares[begin:end]), _beginning(text[start:])))
    return found


def sentence(found: Sequence[Passage]) -> str:
    """Say in plain words which passages drafted well and which badly; empty where there is nothing to compare."""
    found = [p for p in found if p.tokens >= _MIN_TOKENS]
    if len(found) < 2:
        return ""
    kinds = sorted({p.kind for p in found})
    if len(kinds) > 1:
        rates = {kind: _rate(p for p in found if p.kind == kind) for kind in kinds}
        best, worst = max(kinds, key=rates.__getitem__), min(kinds, key=rates.__getitem__)
        if rates[best] >= _CLEARLY * rates[worst]:
            names = {kind: _name(kind, sum(p.kind == kind for p in found)) for kind in kinds}
            return _compare(f"the {names[best]}", rates[best], f"the {names[worst]}", rates[worst])
    top, low = max(found, key=lambda p: p.tokens_per_step), min(found, key=lambda p: p.tokens_per_step)
    if top.tokens_per_step >= _CLEARLY * low.tokens_per_step:
        one, other = f"the passage “{top.begins}”", f"“{low.begins}”"
        return _compare(one, top.tokens_per_step, other, low.tokens_per_step)
    return f"Every passage drafted about equally: {_judge(_rate(found))} ({_rate(found):.1f} tokens per step)."


def _compare(one: str, high: float, other: str, low: float) -> str:
    well, badly = _judge(high), _judge(low)
    if well == badly:
        well, badly = "better", "worse"
    return f"{one[0].upper()}{one[1:]} drafted {well} ({high:.1f} tokens per step), {other} {badly} ({low:.1f})."


def _judge(rate: float) -> str:
    return "well" if rate >= _WELL else "badly" if rate < _BADLY else "fairly well"


def _rate(found: Iterable[Passage]) -> float:
    counts = [(p.tokens, p.steps) for p in found]
    return sum(tokens for tokens, _ in counts) / sum(steps for _, steps in counts)


def _name(kind: Kind, count: int) -> str:
    return kind if count == 1 or kind in ("prose", "code") else f"{kind}s"


def _parts(text: str) -> list[tuple[Kind, int]]:
    """Return each passage's kind and its first character. Blank lines end a passage, but not a list."""
    parts: list[tuple[Kind, int]] = []
    in_code = after_blank = False
    at = 0
    for line in text.splitlines(keepends=True):
        is_fence = line.lstrip().startswith("```")
        if in_code or is_fence:
            kind: Kind = "code"
        elif not line.strip():
            after_blank = True
            at += len(line)
            continue
        elif _ITEM.match(line):
            kind = "list"
        else:
            kind = "table" if line.lstrip().startswith("|") else "heading" if re.match(r"#+ ", line) else "prose"
            if kind == "prose" and parts and parts[-1][0] == "list" and line[0].isspace():
                kind = "list"  # an item goes on
        begins_code = is_fence and not in_code
        in_code ^= is_fence
        goes_on = parts and parts[-1][0] == kind and not (after_blank and kind == "prose") and not begins_code
        if not goes_on:
            parts.append((kind, at))
        after_blank = False
        at += len(line)
    if parts:
        parts[0] = (parts[0][0], 0)
    return parts


def _finer(kind: Kind, text: str) -> list[tuple[Kind, int]]:
    """Return the sentences of prose and the items of a list, as `_parts` does."""
    ends = [m.end() for m in _SENTENCE_END.finditer(text)] if kind == "prose" else []
    items = [m.start() for m in _ITEM.finditer(text)] if kind == "list" else []
    return [(kind, start) for start in (0, *ends, *(item for item in items if item))]


def _first_tokens(pieces: Sequence[str], starts: Sequence[int]) -> list[int]:
    """Return the first token of each passage: the first whose text, spaces before it aside, begins at or after it."""
    ends = list(accumulate(map(len, pieces)))
    begins = [end - len(piece.lstrip()) for piece, end in zip(pieces, ends, strict=True)]
    first, token = [], 0
    for start in starts:
        while token < len(pieces) and (begins[token] < start or (pieces[token] and ends[token] <= start)):
            token += 1
        first.append(token)
    return first


def _beginning(text: str) -> str:
    words = re.sub(r"^[\s#*+•|-]+", "", text[:200]).split()
    short = " ".join(words[:5])[:40]
    return short if len(words) <= 5 else f"{short.rstrip('.,;:')}…"
