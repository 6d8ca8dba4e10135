"""Attention over what each token sees, one token at a time, in chunks of positions cut at fixed places.

What a token sees, in order of position, is its request's committed slots, then (a tree) the chain before it and its
ancestors, or (a full segment) the whole segment. The n-th of these (from 0) has position n, wherever it is stored. So
chunk c holds the positions [64 c, 64 c + 64), committed or provisional, and a token on a path of a tree adds up the
same numbers in the same order as in a chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outpace.ops.reference.storage import Storage
from outpace.types import Segment

CHUNK = 64

Floats = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Seen:
    """What one token sees, by logical slot: all of [0, prefix), then `ancestors` (itself the last)."""

    position: int
    prefix: int
    ancestors: tuple[int, ...] = ()

    def first(self, window: int | None, lowest: int) -> int:
        """Return the first position that a layer lets the token see, by its window and the lowest that it shows."""
        return lowest if window is None else max(lowest, self.position - window + 1)


@dataclass(frozen=True, slots=True)
class Span:
    """One segment in the batch: its first row, the physical slot of each logical slot, what its tokens see."""

    first_row: int
    slots: NDArray[np.int64]  # [start + len(tokens)]; negative where the block was freed
    seen: Sequence[Seen]


@dataclass(frozen=True, slots=True)
class Plan:
    """A ragged batch, flat: tokens, positions and target slots [T], the scored rows [R], and the segments."""

    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    slots: NDArray[np.int64]
    scored: NDArray[np.int64]
    spans: Sequence[Span]


def make_plan(segments: Sequence[Segment], block_size: int) -> Plan:
    """Return the plan of the segments' tokens, one segment after another."""
    spans: list[Span] = []
    scored: list[int] = []
    row = 0
    for segment in segments:
        spans.append(Span(row, _physical(segment, block_size), _seen(segment)))
        row += len(segment.tokens)
        scored.extend(range(row - segment.num_scored, row))
    return Plan(
        tokens=np.array([token for segment in segments for token in segment.tokens], np.int64),
        positions=np.array([seen.position for span in spans for seen in span.seen], np.int64),
        slots=np.concatenate([span.slots[len(span.slots) - len(span.seen) :] for span in spans]),
        scored=np.array(scored, np.int64),
        spans=spans,
    )


def _physical(segment: Segment, block_size: int) -> NDArray[np.int64]:
    """Return the physical slot of each of the segment's logical slots (negative: freed)."""
    end = segment.start + len(segment.stored) + len(segment.tokens)
    assert end <= len(segment.blocks) * block_size, f"{end} tokens do not fit {len(segment.blocks)} blocks"
    logical = np.arange(end)
    return np.asarray(segment.blocks, np.int64)[logical // block_size] * block_size + logical % block_size


def _seen(segment: Segment) -> list[Seen]:
    """Return what each token of the segment sees."""
    end = segment.start + len(segment.tokens)
    if segment.kind == "full":
        assert not segment.parents, "a full segment has no draft"
        assert not segment.stored, "a full segment has no draft"
        return [Seen(position, end) for position in range(segment.start, end)]
    assert not (segment.stored and segment.num_pending), "a draft that grows has no pending tokens"
    root = segment.start + segment.num_pending  # the first draft node's slot
    seen = [Seen(position, position + 1) for position in range(segment.start, root)]
    paths: list[tuple[int, ...]] = []
    for node, parent in enumerate([*segment.stored, *segment.parents]):
        path = (*(paths[parent] if parent >= 0 else ()), root + node)
        paths.append(path)
        seen.append(Seen(root + len(path) - 1, root, path))
    return seen[len(segment.stored) :]


def attend(
    q: Floats,
    layer: int,
    window: int | None,
    lowest: int,
    scale: float,
    storage: Storage,
    plan: Plan,
    sinks: Floats | None = None,
) -> Floats:
    """Return softmax(q k^T * scale) v for each token over what it sees: q and the result are [T, H, K].

    It sees `window` positions (None: all), but none before `lowest`. sinks: logits [H] that take part in each softmax
    and have no value (Xiao et al. 2023, arXiv:2309.17453, section 3.2; learned per head, as gpt-oss has them).
    """
    result = np.empty_like(q)
    for span in plan.spans:
        low = min(seen.first(window, lowest) for seen in span.seen)
        assert span.slots[low] >= 0, f"position {low} is inside the window but its block was freed"
        k, v = (x.astype(q.dtype, copy=False) for x in storage.read(layer, span.slots[low:]))
        for row, seen in enumerate(span.seen, span.first_row):
            first = seen.first(window, lowest)
            chunks = [_chunks(x, seen, first, low) for x in (k, v)]
            last = seen.prefix + len(seen.ancestors)
            result[row] = _attend_one(q[row], scale, chunks[0], chunks[1], first % CHUNK, last - first, sinks)
    return result


def _chunks(x_NGK: Floats, seen: Seen, first: int, low: int) -> Floats:
    """Return the seen rows from position `first` on in their chunks, zeros elsewhere: [C, CHUNK, G, K].

    x starts at logical slot `low`.
    """
    shared = max(0, seen.prefix - first)
    own = [slot - low for slot in seen.ancestors[max(0, first - seen.prefix) :]]
    begin = first % CHUNK
    num_chunks = -(-(begin + shared + len(own)) // CHUNK)
    # Zeros, not memory left as it was: a masked lane has the weight 0, and 0 times NaN is NaN.
    lanes = np.zeros((num_chunks * CHUNK, *x_NGK.shape[1:]), x_NGK.dtype)
    lanes[begin : begin + shared] = x_NGK[first - low : first - low + shared]
    lanes[begin + shared : begin + shared + len(own)] = x_NGK[own]
    return lanes.reshape(num_chunks, CHUNK, *x_NGK.shape[1:])


def _attend_one(
    q_HK: Floats, scale: float, k_CNGK: Floats, v_CNGK: Floats, begin: int, count: int, sinks: Floats | None
) -> Floats:
    """Return one token's result [H, K]; of all lanes it sees `count` from lane `begin` on.

    Every product has the shape of one chunk, so its operations do not depend on how many chunks there are.
    """
    num_chunks, _, groups, width = k_CNGK.shape
    q = q_HK.reshape(groups, -1, width)
    scores = (q @ k_CNGK.transpose(0, 2, 3, 1)) * q.dtype.type(scale)  # [C, G, H / G, CHUNK]
    lane = np.arange(num_chunks * CHUNK).reshape(num_chunks, 1, 1, CHUNK)
    scores = np.where((begin <= lane) & (lane < begin + count), scores, -np.inf)
    largest = scores.max(axis=(0, 3), keepdims=True)
    if sinks is not None:
        largest = np.maximum(largest, sinks.reshape(1, groups, -1, 1))
    weights = np.exp(scores - largest)
    totals = weights.sum(axis=3)
    sums = weights @ v_CNGK.transpose(0, 2, 1, 3)  # [C, G, H / G, K]
    total, result = totals[0], sums[0]
    for chunk in range(1, num_chunks):
        total, result = total + totals[chunk], result + sums[chunk]
    if sinks is not None:
        total = total + np.exp(sinks.reshape(groups, -1) - largest[0, :, :, 0])
    return np.asarray((result / total[..., None]).reshape(q_HK.shape))
