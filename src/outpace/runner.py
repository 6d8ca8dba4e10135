"""Run a network on a ragged batch: pack -> forward -> sample. The only place that does.

It knows nothing of drafters, stop conditions or text: it is handed tokens, and hands back tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from outpace.cache import BlockTable, Cache
from outpace.models import Transformer
from outpace.ops.protocol import Array, Ops
from outpace.types import Request, Row, Segment, TokenLogprob

Rows = TypeVar("Rows", list[Any], NDArray[Any])


@dataclass(slots=True)
class Share:
    """One request's share of a pass: some pending tokens, and a draft behind the last of them.

    text: prompt and output so far (borrowed; it may grow once the pass is decided). The pass takes
    text[start:end], where start is the table's committed length. Only a share that reaches the end of its text
    is scored, and may have a draft (tokens and parents as in `Segment`).
    """

    table: BlockTable
    request: Request
    text: Sequence[int]
    end: int
    draft: Sequence[int] = ()
    parents: Sequence[int] = ()
    start: int = field(init=False)
    scored: bool = field(init=False)

    def __post_init__(self) -> None:
        self.start = self.table.length
        self.scored = self.end == len(self.text)

    @property
    def num_scored(self) -> int:
        """Scored rows: the last pending token, then each draft node."""
        return 1 + len(self.draft) if self.scored else 0

    def paths(self) -> list[tuple[int, ...]]:
        """Return the draft tokens from the root down to each scored row; the root's own path is empty."""
        paths: list[tuple[int, ...]] = [()]
        for token, parent in zip(self.draft, self.parents, strict=True):
            paths.append((*paths[parent + 1], token))
        return paths


class Runner:
    """A model, the ops it runs on, and the cache it remembers in."""

    def __init__(self, model: Transformer, ops: Ops, cache: Cache, context: int | None = None) -> None:
        self.model, self.ops, self.cache = model, ops, cache
        self.context = context or model.config.context  # most tokens of a text, prompt and output

    def forward(self, shares: Sequence[Share]) -> Array:
        """Write the provisional slots of every share; return the logits of all scored rows, [R, V].

        Mutates the tables (`reserve`). Raises CacheError when there is no room.
        """
        segments = []
        for share in shares:
            tokens = [*share.text[share.start : share.end], *share.draft]
            share.table.reserve(len(tokens))
            segments.append(Segment(share.table.blocks, share.start, tokens, share.parents, share.num_scored))
        plan = self.ops.plan(segments, self.cache.spec.block_size)
        return self.model.forward(plan, self.cache.kv)

    def sample(self, logits: Array, shares: Sequence[Share]) -> list[list[int]]:
        """Return the target's token at every scored row, one list per share (empty where none is scored)."""
        rows = self.rows(shares)
        if not rows:
            return [[] for _ in shares]
        picks = self.ops.sample(self._processed(logits, shares), rows)[:, 0].tolist()
        return split(picks, shares)

    def law(self, logits: Array, shares: Sequence[Share]) -> list[NDArray[np.float64]]:
        """Return the law that `sample` draws from at every scored row, [rows of the share, V] per share."""
        if not any(share.scored for share in shares):
            return [np.empty((0, 0))] * len(shares)
        return split(self.ops.law(self._processed(logits, shares), self.rows(shares)), shares)

    def logprobs(
        self, logits: Array, shares: Sequence[Share], picks: Sequence[Sequence[int]]
    ) -> list[list[TokenLogprob] | None]:
        """Return raw log-softmax of the picks, and of the most likely tokens, where a request asks for them."""
        most = max((s.request.logprobs for s in shares if s.request.logprobs is not None), default=None)
        if most is None:
            return [None] * len(shares)
        flat = [max(token, 0) for tokens in picks for token in tokens]
        own = split(self.ops.logprobs(logits, flat).tolist(), shares)
        ids, values = self.ops.top_k(logits, most) if most else (np.empty((len(flat), 0)),) * 2
        top_ids, top_values = split(ids.tolist(), shares), split(values.tolist(), shares)
        answer: list[list[TokenLogprob] | None] = []
        for i, share in enumerate(shares):
            k = share.request.logprobs
            answer.append(
                None
                if k is None
                else [
                    TokenLogprob(token, logprob, tuple(zip(top[:k], top_logprobs[:k], strict=True)))
                    for token, logprob, top, top_logprobs in zip(
                        picks[i], own[i], top_ids[i], top_values[i], strict=True
                    )
                ]
            )
        return answer

    def rows(self, shares: Sequence[Share]) -> list[Row]:
        """Return how each scored row becomes a token: with its position, its own history and its mask."""
        rows: list[Row] = []
        for share in shares:
            if not share.scored:
                continue
            request = share.request
            if request.sampling.greedy and not request.sampling.penalises and request.constraint is None:
                rows += [Row(request.sampling, request.seed, request.sample_index, 0)] * share.num_scored
                continue
            needs_output = request.sampling.penalises or request.constraint is not None
            output = tuple(share.text[len(request.prompt) :]) if needs_output else ()
            paths = share.paths()
            masks = _masks(share, output, paths)
            for path, mask in zip(paths, masks, strict=True):
                position = share.end + len(path)
                row = Row(request.sampling, request.seed, request.sample_index, position, mask=mask)
                if request.sampling.penalises:
                    row.prompt, row.output = request.prompt, output + path
                rows.append(row)
        return rows

    def _processed(self, logits: Array, shares: Sequence[Share]) -> Array:
        """Return the logits after each request's logits processors (node by node), or as they are."""
        if not any(share.request.logits_processors for share in shares):
            return logits
        edited = self.ops.numpy(logits)
        first = 0
        for share in shares:
            for path in share.paths() if share.scored else ():
                for process in share.request.logits_processors:
                    edited[first] = process([*share.text, *path], edited[first])
                first += 1
        return self.ops.array(edited)


def split(rows: Rows, shares: Sequence[Share]) -> list[Rows]:
    """Cut rows of the whole pass into one piece per share."""
    pieces, first = [], 0
    for share in shares:
        pieces.append(rows[first : first + share.num_scored])
        first += share.num_scored
    return pieces


def _masks(
    share: Share, output: tuple[int, ...], paths: Sequence[tuple[int, ...]]
) -> Sequence[NDArray[np.uint32] | None]:
    """Return the constraint's mask at every row; None where the constraint itself forbids the way there."""
    constraint = share.request.constraint
    if constraint is None:
        return [None] * len(paths)
    masks: list[NDArray[np.uint32] | None] = [constraint.mask(output)]
    for path, parent in zip(paths[1:], share.parents, strict=True):
        before, token = masks[parent + 1], path[-1]
        allowed = before is not None and before[token // 32] >> (token % 32) & 1
        masks.append(constraint.mask(output + path) if allowed else None)
    return masks
