"""Run a network on a ragged batch: pack -> forward -> sample. The only place that does.

It knows nothing of drafters, stop conditions or text: it is handed tokens, and hands back tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from outpace.cache import TARGET, BlockTable, Cache
from outpace.errors import SamplingError, UsageError, shown
from outpace.models import Transformer
from outpace.models.adapter import AdaptedRows, Adapter
from outpace.ops.layers import Array
from outpace.ops.protocol import Ops
from outpace.ops.sampling import LastBatches, SamplingBatch, SamplingRows
from outpace.types import Canvas, Constraint, LogitsProcessor, Request, Segment, TokenLogprob
from outpace.types.tree import EMPTY, NO_TOKEN, DraftTree, Verification

Rows = TypeVar("Rows", list[Any], NDArray[Any])
Number = TypeVar("Number", np.int64, np.float64)


@dataclass(slots=True)
class ScheduledSequence:
    """One request's part of a forward pass: some pending tokens, and a draft behind the last of them.

    tokens: prompt and output so far (borrowed; the list may grow once the pass is decided). The pass takes
    tokens[start:end]; start is the table's committed length, unless it is given. Only a sequence whose `end` is the
    end of its tokens is scored, and may have a draft, or a canvas in its place. verification, logprobs: filled in once
    the target has decided.
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
    canvas: Canvas | None = None

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
        """Scored rows: the last pending token, then each draft node; or those of the canvas."""
        if self.canvas is not None:
            return self.canvas.num_scored
        return 1 + len(self.tree.tokens) if self.scored else 0

    @property
    def num_tokens(self) -> int:
        """Rows in the pass: pending tokens, then the draft or the canvas."""
        return self.num_pending + len(self.canvas.tokens if self.canvas is not None else self.tree.tokens)

    def segments(self) -> list[Segment]:
        """Return the parts of the pass: one, or (a canvas) what was known before as a chain, then what sees itself."""
        blocks, start = self.table.blocks, self.start
        pending = self.tokens[start : self.end]
        canvas = self.canvas
        if canvas is None:
            return [Segment(blocks, start, [*pending, *self.tree.tokens], self.tree.parents, self.num_scored)]
        chain = self.num_pending - canvas.num_known
        full = Segment(
            blocks, start + chain, [*pending[chain:], *canvas.tokens], num_scored=canvas.num_scored, kind="full"
        )
        return [Segment(blocks, start, pending[:chain], num_scored=0), full] if chain else [full]

    def paths(self) -> list[tuple[int, ...]]:
        """Return the draft tokens from the root down to each scored row; the root's own path is empty."""
        paths: list[tuple[int, ...]] = [()]
        for token, parent in zip(self.tree.tokens, self.tree.parents, strict=True):
            paths.append((*paths[parent + 1], token))
        return paths


@dataclass(frozen=True, slots=True, eq=False)
class Pass:
    """What a forward pass computed, as arrays of ops.

    logits: the scored rows of all sequences, in the batch's order, [R, V]. hidden: for each tap, the hidden states of
    all tokens, [T, D] (see `Transformer.forward`). rows[i]: where batch[i] lies in them, its pending tokens first, then
    its draft nodes.
    """

    batch: Sequence[ScheduledSequence]
    logits: Array
    hidden: dict[int, Array]
    rows: tuple[range, ...]

    def of(self, ids: Collection[int]) -> Pass:
        """Return the pass as it concerns some of its sequences: their places in the same arrays."""
        own = [i for i, s in enumerate(self.batch) if s.id in ids]
        return Pass([self.batch[i] for i in own], self.logits, self.hidden, tuple([self.rows[i] for i in own]))


class Runner:
    """A model, the ops it runs on, and the cache it remembers in.

    context: the maximum length of a sequence, prompt and output. group: whose keys and values it writes; a runner of
    another group than the target's runs a draft model, and follows the tables that the target's runner advances.
    adapter: on for the rows of canvases, off for all others; or on for all, if it is one of that kind.
    """

    def __init__(
        self,
        model: Transformer,
        ops: Ops,
        cache: Cache,
        context: int | None = None,
        group: str = TARGET,
        adapter: Adapter | None = None,
    ) -> None:
        self.model, self.ops, self.cache, self.group, self.adapter = model, ops, cache, group, adapter
        self.context = context or model.config.context
        self._last_batches = LastBatches()

    def join(self, cache: Cache, group: str) -> Runner:
        """Return a runner of the same model whose keys and values are a new group of layers in a target's cache."""
        spec = replace(self.cache.spec_of(self.group), block_size=cache.block_size)
        cache.add_group(group, self.ops, spec, self.model.max_window)
        return Runner(self.model, self.ops, cache, self.context, group, self.adapter)

    def scratch(self, num_blocks: int) -> Runner:
        """Return a runner of the same model on a private cache of at most `num_blocks` blocks, which shares nothing."""
        spec = self.cache.spec_of(self.group)
        cache = Cache(self.ops, spec, capacity=num_blocks, max_window=self.model.max_window, share_prefixes=False)
        return Runner(self.model, self.ops, cache, self.context, adapter=self.adapter)

    def forward(self, batch: Sequence[ScheduledSequence], taps: Sequence[int] = ()) -> Pass:
        """Write the slots of every sequence; return logits of the scored rows, and the taps' hidden states.

        Mutates the tables: the target reserves its slots (CacheError when no block is left). A further group writes
        into slots that are committed or reserved by now, and tells the table how far it has come (`advance`).
        """
        is_target = self.group == TARGET
        segments, rows = [], []
        first = 0
        for s in batch:
            num_tokens = s.num_tokens
            if is_target:
                s.table.reserve(num_tokens)
            assert s.start + num_tokens <= s.table.length + s.table.reserved, "reserve first"
            segments += s.segments()
            rows.append(range(first, first + num_tokens))
            first += num_tokens
        plan = self.ops.plan(segments, self.cache.block_size)
        kv = self.cache.kv(self.group)
        if self.adapter is not None and (on := _adapted(batch, rows, self.adapter)):
            logits, hidden = self.adapter.forward(self.model, plan, kv, taps, on, first)
        else:
            logits, hidden = self.model.forward(plan, kv, taps)
        if not is_target:
            for s in batch:
                s.table.advance(self.group, s.start, s.tokens[s.start : s.end])
        return Pass(batch, logits, hidden, tuple(rows))

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
        return self.ops.select(passed.logits, rows)

    def sample(self, logits: Array, batch: Sequence[ScheduledSequence]) -> list[list[int]]:
        """Return the target's token at every scored row, one list per sequence (empty where none is scored).

        A sequence from whose last pending token nothing can be sampled (its constraint, bias or logits processor
        raises or forbids every token, a logit is NaN) raises what plain decoding would raise here. Behind a draft node,
        where the target may never come, the token is NO_TOKEN instead.
        """
        return split(self._each_row(self.ops.sample, logits, batch, NO_TOKEN)[:, 0].tolist(), batch)

    def probs(self, logits: Array, batch: Sequence[ScheduledSequence]) -> list[NDArray[np.float64]]:
        """Return the distribution that `sample` draws from at every scored row, [rows of the sequence, V] per sequence.

        Raises as `sample` does; where it gives NO_TOKEN, all probabilities are 0.
        """
        return split(self._each_row(self.ops.probs, logits, batch, 0), batch)

    def logprobs(
        self, logits: Array, batch: Sequence[ScheduledSequence], target_tokens: Sequence[Sequence[int]]
    ) -> list[list[TokenLogprob] | None]:
        """Return raw log-softmax of the target tokens, and of the most likely tokens, where a request asks for them."""
        answer: list[list[TokenLogprob] | None] = [None] * len(batch)
        first = 0
        for i, s in enumerate(batch):
            if s.scored and s.request.options.logprobs is not None:
                answer[i] = self._logprobs(logits, first, target_tokens[i], s.request.options.logprobs)
            first += s.num_scored
        return answer

    def _logprobs(self, logits: Array, first: int, tokens: Sequence[int], k: int) -> list[TokenLogprob]:
        """Return one sequence's log-softmax, whose rows begin at `first`; nothing is computed where it has no token."""
        answer = [TokenLogprob(NO_TOKEN, -math.inf)] * len(tokens)
        rows = [row for row, token in enumerate(tokens) if token != NO_TOKEN]
        own_logits = self.ops.select(logits, [first + row for row in rows])
        own = self.ops.logprobs(own_logits, [tokens[row] for row in rows]).tolist()
        tops: Iterable[tuple[tuple[int, float], ...]] = [()] * len(rows)
        if k:
            ids, values = self.ops.top_k(own_logits, k)
            tops = [tuple(zip(*top, strict=True)) for top in zip(ids.tolist(), values.tolist(), strict=True)]
        for row, logprob, top in zip(rows, own, tops, strict=True):
            answer[row] = TokenLogprob(tokens[row], logprob, top)
        return answer

    def sampling_batch(self, batch: Sequence[ScheduledSequence]) -> SamplingBatch:
        """Return how each scored row becomes a token: with its position, its own history and its mask."""
        return self._sampling_batch(batch, {})

    def _sampling_batch(self, batch: Sequence[ScheduledSequence], failures: dict[int, Exception]) -> SamplingBatch:
        """Return the sampling batch; failures: what a constraint raised, by row, which then goes without a mask."""
        if len(batch) == 1 and (ready := self._ready_batch(batch[0])) is not None:
            return ready
        rows = SamplingRows()
        for s in batch:
            if not s.scored:
                continue
            request, sampling = s.request, s.request.options.sampling
            constraint = request.options.constraint
            if constraint is None and sampling.is_argmax:
                rows.add(sampling, 0, 0, (0,) * s.num_scored)  # no noise, so no position
                continue
            output = s.tokens[len(request.prompt) :] if sampling.penalises or constraint is not None else ()
            paths = s.paths()
            first = len(rows)
            masks, errors = _masks(s, output, paths, self.model.config.vocab_size)
            rows.add(
                sampling,
                request.seed,
                request.sample_index,
                [s.end + len(path) for path in paths],
                prompt=request.prompt,
                output=output,
                paths=paths,
                masks=masks,
            )
            failures |= {first + row: error for row, error in errors.items()}
        return rows.build()

    def _ready_batch(self, s: ScheduledSequence) -> SamplingBatch | None:
        """Return the batch of a sequence alone, where a row depends on nothing but its position; None elsewhere."""
        request, sampling = s.request, s.request.options.sampling
        if not s.scored or s.canvas is not None or request.options.constraint is not None or sampling.penalises:
            return None
        if sampling.is_argmax:
            return SamplingBatch.greedy(s.num_scored)
        positions = [s.end, *[s.end + 1 + depth for depth in s.tree.depths()]]
        return self._last_batches.of(sampling, request.seed, request.sample_index, positions)

    def _each_row(
        self,
        op: Callable[[Array, SamplingBatch], NDArray[Number]],
        logits: Array,
        batch: Sequence[ScheduledSequence],
        missing: int,
    ) -> NDArray[Number]:
        """Return what `op` makes of every scored row, [R, ...]; `missing` at draft nodes where that fails."""
        failures: dict[int, Exception] = {}
        sampling = self._sampling_batch(batch, failures)
        logits = self._processed(logits, batch, failures)
        try:
            found = op(logits, sampling)
        except SamplingError as error:
            failures = {row: UsageError(reason) for row, reason in error.rows.items()} | failures
            fine = [row for row in range(len(sampling)) if row not in error.rows]
            rest = op(self.ops.select(logits, fine), sampling.select(fine))
            found = np.empty((len(sampling), rest.shape[1]), rest.dtype)
            found[fine] = rest
        if failures:
            _raise_at_roots(batch, failures)
            found[list(failures)] = missing
        return found

    def _processed(self, logits: Array, batch: Sequence[ScheduledSequence], failures: dict[int, Exception]) -> Array:
        """Return the logits after each request's logits processors (node by node), or as they are.

        failures: what a processor raised, by row, whose logits stay as they are.
        """
        if not any(s.request.options.logits_processors for s in batch):
            return logits
        edited = self.ops.numpy(logits)
        row = 0
        for s in batch:
            for path in s.paths() if s.scored else ():
                try:
                    edited[row] = _process(s.request.options.logits_processors, [*s.tokens, *path], edited[row])
                except Exception as error:
                    failures.setdefault(row, error)
                row += 1
        return self.ops.array(edited)


def _adapted(batch: Sequence[ScheduledSequence], rows: Sequence[range], adapter: Adapter) -> AdaptedRows | None:
    """Return the rows of a pass in which the adapter is on, and which of them are masks; None where it is off."""
    on: list[int] = []
    masked: list[int] = []
    for s, own in zip(batch, rows, strict=True):
        canvas = s.canvas
        if canvas is not None:
            first = own.stop - len(canvas.tokens)
            on += range(first - canvas.num_known, own.stop)
            masked += [first + place for place, is_mask in enumerate(canvas.masked) if is_mask]
    if adapter.is_always_on:
        on = list(range(rows[-1].stop))
    return AdaptedRows(on, masked) if on else None


def split(rows: Rows, batch: Sequence[ScheduledSequence]) -> list[Rows]:
    """Cut rows of the whole pass into one piece per sequence."""
    pieces, first = [], 0
    for s in batch:
        pieces.append(rows[first : first + s.num_scored])
        first += s.num_scored
    return pieces


def _raise_at_roots(batch: Sequence[ScheduledSequence], failures: Mapping[int, Exception]) -> None:
    """Raise the failure of the first sequence that has one at its last pending token."""
    first = 0
    for s in batch:
        if s.scored and first in failures:
            raise failures[first]
        first += s.num_scored


def _process(
    processors: Sequence[LogitsProcessor], tokens: Sequence[int], logits: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return one row of logits [V] after its processors."""
    x = logits.copy()
    for process in processors:
        given = process(tokens, x)
        x = np.asarray(given)
        if x.shape != logits.shape or x.dtype.kind not in "fiu":
            raise UsageError(
                f"a logits processor must return numbers of shape {list(logits.shape)} (float32), "
                f"got {f'{x.dtype} {list(x.shape)}' if isinstance(given, np.ndarray) else shown(given)}"
            )
        x = x.astype(np.float32)
    return x


def _masks(
    s: ScheduledSequence, output: Sequence[int], paths: Sequence[tuple[int, ...]], vocab_size: int
) -> tuple[list[NDArray[np.uint32] | None], dict[int, Exception]]:
    """Return the constraint's mask at every row, and what it raised.

    A row has no mask (None) where its constraint raised, or forbids the way there.
    """
    masks: list[NDArray[np.uint32] | None] = []
    errors: dict[int, Exception] = {}
    constraint = s.request.options.constraint
    if constraint is None:
        return masks, errors
    for row, path in enumerate(paths):
        before = masks[s.tree.parents[row - 1] + 1] if row else None
        allowed = not row or (before is not None and before[path[-1] // 32] >> (path[-1] % 32) & 1)
        try:
            masks.append(_mask(constraint, [*output, *path], vocab_size) if allowed else None)
        except Exception as error:
            masks.append(None)
            errors[row] = error
    return masks, errors


def _mask(constraint: Constraint, path: Sequence[int], vocab_size: int) -> NDArray[np.uint32]:
    mask, words = constraint.mask(path), -(-vocab_size // 32)
    if not isinstance(mask, np.ndarray) or mask.dtype != np.uint32 or mask.shape != (words,):
        found = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, np.ndarray) else shown(mask)
        raise UsageError(f"a constraint's mask over {vocab_size} tokens must be uint32 [{words}], got {found}")
    return mask
