"""Ops that store one number a slot, and texts whose every slot is known: so tests can ask what a cache holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from outpace.cache import BlockTable, Cache
from outpace.types import KVSpec

JUNK = -1  # what storage holds before anything is written


class TagOps:
    """The three calls that the cache makes, over one int64 a slot."""

    def __init__(self) -> None:
        self.spec: KVSpec
        self.moves: list[tuple[list[int], list[int]]] = []
        self.sizes: list[int] = []  # of the storage, in blocks

    def kv_alloc(self, spec: KVSpec, num_blocks: int) -> list[Any]:
        self.spec = spec
        self.sizes.append(num_blocks)
        return [np.full(num_blocks * spec.block_size, JUNK)]

    def kv_grow(self, kv: list[Any], num_blocks: int) -> None:
        tags = np.full(num_blocks * self.spec.block_size, JUNK)
        tags[: len(kv[0])] = kv[0]
        kv[0] = tags
        self.sizes.append(num_blocks)

    def kv_move(self, kv: list[Any], sources: Sequence[int], targets: Sequence[int]) -> None:
        self.moves.append((list(sources), list(targets)))
        for source, target in zip(sources, targets, strict=True):
            kv[0][target] = kv[0][source]


def tag(text: Sequence[int], salt: bytes = b"") -> int:
    """Return what the last token of `text` writes: like real keys and values, a pure function of all of `text`."""
    return hash((salt, tuple(text))) & 0x7FFFFFFF


def slot(table: BlockTable, logical: int, block_size: int) -> int:
    block = table.blocks[logical // block_size]
    assert block >= 0, f"slot {logical} was freed"
    return block * block_size + logical % block_size


def write(cache: Cache, table: BlockTable, at: int, tags: Sequence[int]) -> None:
    """Write tags into the logical slots [at, at + len(tags)), as a forward pass would."""
    for i, value in enumerate(tags):
        cache.kv[0][slot(table, at + i, cache.block_size)] = value


def read(cache: Cache, table: BlockTable, start: int, stop: int) -> list[int]:
    return [int(cache.kv[0][slot(table, s, cache.block_size)]) for s in range(start, stop)]


def extend(cache: Cache, table: BlockTable, text: Sequence[int], salt: bytes = b"") -> None:
    """Compute and commit all of `text` that the table does not have yet, in one pass."""
    start = table.length
    table.reserve(len(text) - start)
    write(cache, table, start, [tag(text[: p + 1], salt) for p in range(start, len(text))])
    table.commit(range(len(text) - start), text[start:])


def holds(cache: Cache, table: BlockTable, text: Sequence[int], salt: bytes = b"") -> bool:
    """Return whether every slot that the table kept has what `text` wrote there."""
    kept = sum(block < 0 for block in table.blocks) * cache.block_size
    expected = [tag(text[: p + 1], salt) for p in range(kept, len(text))]
    return table.length == len(text) and read(cache, table, kept, table.length) == expected


def make_cache(
    capacity: int = 64,
    *,
    block_size: int = 4,
    lookback: int | None = None,
    fingerprint: bytes = b"model",
    share: bool = True,
) -> tuple[Cache, TagOps]:
    ops = TagOps()
    spec = KVSpec(num_layers=1, num_kv_heads=1, head_width=1, block_size=block_size)
    cache = Cache(ops, spec, capacity=capacity, lookback=lookback, fingerprint=fingerprint, share=share)  # type: ignore[arg-type]
    return cache, ops
