"""Run a network on a ragged batch: pack -> forward -> sample. The only place that does.

It knows nothing of drafters, stop conditions or text: it is handed tokens, and hands back tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from outpace.cache import BlockTable, Cache
from outpace.errors import UsageError, shown
from outpace.models import Transformer
from outpace.ops.protocol import Array, Ops
from outpace.tree import EMPTY, DraftTree, Verification
from outpace.types import Constraint, LogitsProcessor, Request, Row, Segment, TokenLogprob

Rows = TypeVar("Rows", list[Any], NDArray[Any])


@dataclass(slots=True)
class ScheduledSequence:
    """One request's part of a forward pass: some pending tokens, and a draft behind the last of them.

    tokens: prompt and output so far (borrowed; the list may grow once the pass is decided). The pass takes
    tokens[start:end]; start is the table's committed length, unless it is given. Only a sequence whose `end` is the
    end of its tokens is scored, and may have a draft. verification, logprobs: filled in once the target has decided.
    """

    table: BlockTable
    request: Request
    tokens: Sequence[int]
    end: int
    tree: DraftTree = EMPTY
    start: int = -1  # -1: the table's length
    id: int = -1  # of the sequence, for its drafter
    scored: bool = field(init=False)
    verification: Verification | None = None
    logprobs: list[TokenLogprob] | None = None

    def __post_init__(self) -> None:
        if self.start < 0:
            self.start = self.table.length
        self.scored = self.end == len(self.tokens)

    @property
    def num_pending(self) -> int:
        """Pending tokens in this pass, before the draft."""
        return self.end - self.start

    @property
    def num_scored(self) -> int:
        """Scored rows: the last pending token, then each draft node."""
        return 1 + len(self.tree) if self.scored else 0

    def paths(self) -> list[tuple[int, ...]]:
        """Return the draft tokens from the root down to each scored row; the root's own path is empty."""
        paths: list[tuple[int, ...]] = [()]
        for token, parent in zip(self.tree.tokens, self.tree.parents, strict=True):
            paths.append((*paths[parent + 1], token))
        return paths


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """What a forward pass computed, as arrays of ops.

    logits: the scored rows of all sequences, in the batch's order, [R, V]; None where no row is scored. hidden: for
    each tap, the hidden states of all tokens, [T, D] (see `Transformer.forward`). rows[i]: where batch[i] lies in them,
    its pending tokens first, then its draft nodes.
    """

    batch: Sequence[ScheduledSequence]
    logits: Array | None
    hidden: dict[int, Array]
    rows: tuple[range, ...]

    def of(self, ids: Collection[int]) -> Pass:
        """Return the pass as it concerns some of its sequences: their places in the same arrays."""
        own = [i for i, s in enumerate(self.batch) if s.id in ids]
        return Pass([self.batch[i] for i in own], self.logits, self.hidden, tuple([self.rows[i] for i in own]))


class Runner:
    """A model, the ops it runs on, and the cache it remembers in."""

    def __init__(self, model: Transformer, ops: Ops, cache: Cache, context: int | None = None) -> None:
        self.model, self.ops, self.cache = model, ops, cache
        self.context = context or model.config.context  # maximum length of a sequence, prompt and output

    def scratch(self, num_blocks: int) -> Runner:
        """Return a runner of the same model on a private cache of at most `num_blocks` blocks, which batch nothing."""
        cache = Cache(self.ops, self.cache.spec, capacity=num_blocks, lookback=self.model.lookback, share=False)
        return Runner(self.model, self.ops, cache, self.context)

    def forward(self, batch: Sequence[ScheduledSequence], taps: Sequence[int] = ()) -> Pass:
        """Write the provisional slots of every sequence; return logits of the scored rows, and the taps' hidden states.

        Mutates the tables (`reserve`). Raises CacheError when no block is left.
        """
        segments, rows = [], []
        first = 0
        for s in batch:
            tokens = [*s.tokens[s.start : s.end], *s.tree.tokens]
            s.table.reserve(len(tokens))
            segments.append(Segment(s.table.blocks, s.start, tokens, s.tree.parents, s.num_scored))
            rows.append(range(first, first + len(tokens)))
            first += len(tokens)
        plan = self.ops.plan(segments, self.cache.block_size)
        logits, hidden = self.model.forward(plan, self.cache.kv, taps)
        return Pass(batch, logits if any(s.scored for s in batch) else None, hidden, tuple(rows))

    def logits_of(self, passed: Pass, parts: Sequence[ScheduledSequence]) -> Array:
        """Return the scored rows of some of a pass' scored sequences, in the pass' order, [R, V]."""
        if len(parts) == sum([s.scored for s in passed.batch]):
            return passed.logits
        wanted = {id(s) for s in parts}
        rows: list[int] = []
        first = 0
        for s in passed.batch:
            if id(s) in wanted:
                rows += range(first, first + s.num_scored)
            first += s.num_scored
        return self.ops.array(self.ops.numpy(passed.logits)[rows])

    def sample(self, logits: Array, batch: Sequence[ScheduledSequence]) -> list[list[int]]:
        """Return the target's token at every scored row, one list per sequence (empty where none is scored)."""
        rows = self.rows(batch)
        if not rows:
            return [[] for _ in batch]
        target_tokens = self.ops.sample(self._processed(logits, batch), rows)[:, 0].tolist()
        return split(target_tokens, batch)

    def law(self, logits: Array, batch: Sequence[ScheduledSequence]) -> list[NDArray[np.float64]]:
        """Return the law that `sample` draws from at every scored row, [rows of the sequence, V] per sequence."""
        if not any(s.scored for s in batch):
            return [np.empty((0, 0))] * len(batch)
        return split(self.ops.law(self._processed(logits, batch), self.rows(batch)), batch)

    def logprobs(
        self, logits: Array, batch: Sequence[ScheduledSequence], target_tokens: Sequence[Sequence[int]]
    ) -> list[list[TokenLogprob] | None]:
        """Return raw log-softmax of the target tokens, and of the most likely tokens, where a request asks for them."""
        most = max((s.request.options.logprobs for s in batch if s.request.options.logprobs is not None), default=None)
        if most is None or not any(s.scored for s in batch):
            return [None] * len(batch)
        flat = [max(token, 0) for tokens in target_tokens for token in tokens]
        own = split(self.ops.logprobs(logits, flat).tolist(), batch)
        ids, values = self.ops.top_k(logits, most) if most else (np.empty((len(flat), 0)),) * 2
        top_ids, top_values = split(ids.tolist(), batch), split(values.tolist(), batch)
        answer: list[list[TokenLogprob] | None] = []
        for i, s in enumerate(batch):
            k = s.request.options.logprobs
            answer.append(
                None
                if k is None
                else [
                    TokenLogprob(token, logprob, tuple(zip(top[:k], top_logprobs[:k], strict=True)))
                    for token, logprob, top, top_logprobs in zip(
                        target_tokens[i], own[i], top_ids[i], top_values[i], strict=True
                    )
                ]
            )
        return answer

    def rows(self, batch: Sequence[ScheduledSequence]) -> list[Row]:
        """Return how each scored row becomes a token: with its position, its own history and its mask."""
        rows: list[Row] = []
        for s in batch:
            if not s.scored:
                continue
            request, sampling = s.request, s.request.options.sampling
            constrained = request.options.constraint is not None
            if sampling.greedy and not sampling.penalises and not constrained:
                rows += [Row(sampling, request.seed, request.sample_index, 0)] * s.num_scored
                continue
            needs_output = sampling.penalises or constrained
            output = tuple(s.tokens[len(request.prompt) :]) if needs_output else ()
            paths = s.paths()
            masks = _masks(s, output, paths, self.model.config.vocab_size)
            for path, mask in zip(paths, masks, strict=True):
                position = s.end + len(path)
                row = Row(sampling, request.seed, request.sample_index, position, mask=mask)
                if sampling.penalises:
                    row.prompt, row.output = request.prompt, output + path
                rows.append(row)
        return rows

    def _processed(self, logits: Array, batch: Sequence[ScheduledSequence]) -> Array:
        """Return the logits after each request's logits processors (node by node), or as they are."""
        if not any(s.request.options.logits_processors for s in batch):
            return logits
        edited = self.ops.numpy(logits)
        first = 0
        for s in batch:
            for path in s.paths() if s.scored else ():
                for process in s.request.options.logits_processors:
                    edited[first] = _logits(process, process([*s.tokens, *path], edited[first]), edited[first])
                first += 1
        return self.ops.array(edited)


def split(rows: Rows, batch: Sequence[ScheduledSequence]) -> list[Rows]:
    """Cut rows of the whole pass into one piece per s."""
    pieces, first = [], 0
    for s in batch:
        pieces.append(rows[first : first + s.num_scored])
        first += s.num_scored
    return pieces


def _logits(process: LogitsProcessor, found: Any, given: NDArray[np.float32]) -> NDArray[Any]:
    """Return what a logits processor returned; raises UsageError unless it is one row of floats like the given one."""
    if isinstance(found, np.ndarray) and found.shape == given.shape and found.dtype.kind == "f":
        return found
    what = f"{found.dtype} {list(found.shape)}" if isinstance(found, np.ndarray) else shown(found)
    raise UsageError(
        f"logits processor {shown(process)} must return an array of floats {list(given.shape)}, as it is given, "
        f"got {what}"
    )


def _mask(constraint: Constraint, path: Sequence[int], vocab_size: int) -> NDArray[np.uint32]:
    """Return a constraint's mask; raises UsageError unless it has a bit for every token."""
    mask = constraint.mask(path)
    shape = (-(-vocab_size // 32),)
    if isinstance(mask, np.ndarray) and mask.shape == shape and mask.dtype == np.uint32:
        return mask
    what = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, np.ndarray) else shown(mask)
    raise UsageError(f"the constraint's mask must be uint32 {list(shape)}, a bit for every token, got {what}")


def _masks(
    s: ScheduledSequence, output: tuple[int, ...], paths: Sequence[tuple[int, ...]], vocab_size: int
) -> Sequence[NDArray[np.uint32] | None]:
    """Return the constraint's mask at every row; None where the constraint itself forbids the way there."""
    constraint = s.request.options.constraint
    if constraint is None:
        return [None] * len(paths)
    masks: list[NDArray[np.uint32] | None] = [_mask(constraint, output, vocab_size)]
    for path, parent in zip(paths[1:], s.tree.parents, strict=True):
        before, token = masks[parent + 1], path[-1]
        allowed = before is not None and before[token // 32] >> (token % 32) & 1
        masks.append(_mask(constraint, output + path, vocab_size) if allowed else None)
    return masks
