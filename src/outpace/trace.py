"""Step records: what was drafted, what the target made of it, how long it took.

One format for everything that explains or measures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from outpace.types import TokenLogprob
from outpace.types.tree import DraftTree

SCHEMA = 2
PHASES = ("draft", "forward", "verify", "commit")


@dataclass(slots=True)
class Times:
    """Seconds of one pass of the batch, shared by all requests in it.

    draft: asking drafters, and, once they have done it, what they learn from the pass.
    worked: the same by the clock of the ops (`Ops.clock`), which leaves out what other processes took of the core;
    None: not known.
    """

    draft: float
    forward: float
    verify: float
    commit: float
    worked: Times | None = None

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return self.draft + self.forward + self.verify + self.commit


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the router expected of a step when it decided on its draft.

    tokens: of this request, the target's own included. Seconds are of the whole batch: asking the drafters, the pass
    with the draft, and the pass without any (0: not known yet). drafters: name, nodes proposed, tokens expected.
    """

    tokens: float
    draft_seconds: float
    pass_seconds: float
    plain_seconds: float
    reason: str
    drafters: tuple[tuple[str, int, float], ...] = ()

    def as_dict(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "tokens": self.tokens,
            "seconds": {"draft": self.draft_seconds, "pass": self.pass_seconds, "plain": self.plain_seconds},
            "reason": self.reason,
            "drafters": {
                name: {"proposed": proposed, "expected": expected} for name, proposed, expected in self.drafters
            },
        }


@dataclass(slots=True)
class Step:
    """One request's part of one forward pass of the target that emitted at least one token.

    target_tokens: the target's token at the root and at every node (N + 1), -1 where verification did not look.
    path: accepted nodes. tokens: what was emitted, after stop conditions cut it. position: of tokens[0].
    """

    request: int
    position: int
    num_pending: int
    tree: DraftTree
    target_tokens: Sequence[int]
    path: Sequence[int]
    tokens: Sequence[int]
    times: Times
    batch: int = 1  # requests in the pass
    blocks: tuple[int, ...] = ()  # the request's block table after commit (only when tracing; empty once it ended)
    ref_counts: tuple[int, ...] = ()  # how many tables hold each of these blocks
    forecast: Forecast | None = None  # the router's, where it decided on the draft

    def as_dict(self) -> dict[str, Any]:
        """Return the step as plain JSON values."""
        return {
            "request": self.request,
            "position": self.position,
            "num_pending": self.num_pending,
            "batch": self.batch,
            "tree": {
                "tokens": list(self.tree.tokens),
                "parents": list(self.tree.parents),
                "sources": [list(s) for s in self.tree.sources],
                "confidence": [round(c, 6) for c in self.tree.confidence],
            },
            "target_tokens": list(self.target_tokens),
            "path": list(self.path),
            "tokens": list(self.tokens),
            "seconds": {phase: getattr(self.times, phase) for phase in PHASES},
            "blocks": list(self.blocks),
            "ref_counts": list(self.ref_counts),
            "forecast": self.forecast.as_dict() if self.forecast else None,
        }


@dataclass(slots=True)
class Stats:
    """What one request took, added up pass by pass.

    The first scored pass belongs to prefill: its tokens and seconds are left out of `decode_tokens_per_second`.
    passes: those that could write a token; a refiner's write none until a block is finished, so it has fewer steps.
    """

    steps: int = 0
    passes: int = 0
    tokens: int = 0  # written by these steps (the stop token included)
    prompt_tokens: int = 0
    cached_tokens: int = 0  # prompt tokens whose keys and values came from the prefix index
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    proposed: dict[str, int] = field(default_factory=dict)  # draft tokens verified, by drafter
    accepted: dict[str, int] = field(default_factory=dict)  # draft tokens accepted, by drafter
    first_step_tokens: int = 0
    preemptions: int = 0  # times its blocks were taken away for older requests
    warnings: list[str] = field(default_factory=list)  # what went wrong without changing the output

    def add_pass(self, times: Times, *, is_scored: bool) -> None:
        """Count the time of a pass that this request took part in; is_scored: all its tokens were computed by then."""
        for phase in PHASES:
            self.seconds[phase] += getattr(times, phase)
        if self.passes:
            self.decode_seconds += times.total
        else:
            self.prefill_seconds += times.total
        self.passes += is_scored

    def add_learning(self, seconds: float) -> None:
        """Count what drafters took to learn from the pass that was counted last: it belongs to drafting."""
        self.seconds["draft"] += seconds
        if self.passes > 1:
            self.decode_seconds += seconds
        else:
            self.prefill_seconds += seconds

    def add_step(self, step: Step) -> None:
        """Count what a step wrote, and whose drafts were right."""
        if not self.steps and self.passes <= 1:
            self.first_step_tokens = len(step.tokens)
        self.steps += 1
        self.tokens += len(step.tokens)
        for names in step.tree.sources:
            for name in names:
                self.proposed[name] = self.proposed.get(name, 0) + 1
        for node in step.path:
            for name in step.tree.sources[node]:
                self.accepted[name] = self.accepted.get(name, 0) + 1

    @property
    def tokens_per_step(self) -> float:
        """Tokens written by a step on average, bonus included."""
        return self.tokens / self.steps if self.steps else 0.0

    @property
    def passes_per_token(self) -> float:
        """Scored passes for a token on average: 1 in plain decoding, fewer with drafts that come true."""
        return self.passes / self.tokens if self.tokens else 0.0

    @property
    def decode_tokens_per_second(self) -> float | None:
        """Tokens after the first step by the seconds they took; None where there was only one step."""
        return (self.tokens - self.first_step_tokens) / self.decode_seconds if self.decode_seconds else None

    @property
    def prefill_tokens_per_second(self) -> float | None:
        """Prompt tokens computed (not cached) by the seconds until the first token."""
        return (self.prompt_tokens - self.cached_tokens) / self.prefill_seconds if self.prefill_seconds else None

    def as_dict(self) -> dict[str, Any]:
        """Return counts, times and rates as plain JSON values."""
        return {
            "steps": self.steps,
            "tokens": self.tokens,
            "tokens_per_step": self.tokens_per_step,
            "passes": self.passes,
            "passes_per_token": self.passes_per_token,
            "decode_tokens_per_second": self.decode_tokens_per_second,
            "prefill_tokens_per_second": self.prefill_tokens_per_second,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "prefill_seconds": self.prefill_seconds,
            "decode_seconds": self.decode_seconds,
            "seconds": dict(self.seconds),
            "preemptions": self.preemptions,
            "warnings": list(self.warnings),
            "drafters": {
                name: {"proposed": count, "accepted": self.accepted.get(name, 0)}
                for name, count in self.proposed.items()
            },
        }


@dataclass(slots=True)
class Trace:
    """Every step of one text, with what a reader needs to show it: versioned JSON for explain, bench and router.

    header: model, ops, strategy, seed and the like. pieces[i]: the text of token i of `tokens`, prompt_pieces[i] of
    `prompt`; texts: of every token that a step names, by id. logprobs: one for each of `tokens`, where asked for.
    """

    header: dict[str, Any]
    prompt: list[int]
    tokens: list[int]
    pieces: list[str]
    sources: list[tuple[str, ...]]
    steps: list[Step]
    stats: Stats
    prompt_pieces: list[str] = field(default_factory=list)
    texts: dict[int, str] = field(default_factory=dict)
    logprobs: list[TokenLogprob] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the trace as plain JSON values."""
        return {
            "schema": SCHEMA,
            **self.header,
            "prompt": self.prompt,
            "tokens": self.tokens,
            "pieces": self.pieces,
            "prompt_pieces": self.prompt_pieces,
            "texts": {str(token): text for token, text in self.texts.items()},
            "logprobs": None
            if self.logprobs is None
            else [[own.logprob, [list(top) for top in own.top]] for own in self.logprobs],
            "sources": [list(names) for names in self.sources],
            "stats": self.stats.as_dict(),
            "steps": [step.as_dict() for step in self.steps],
        }

    def to_json(self) -> str:
        """Return the trace as JSON text, as `outpace explain` reads it."""
        return json.dumps(self.as_dict(), ensure_ascii=False)
