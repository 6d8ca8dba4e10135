"""Ops that store one number a slot, and sequences whose every slot is known: so tests can ask what a cache holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from outpace.cache import TARGET, BlockTable, Cache
from outpace.types import KVSpec

JUNK = -1  # what storage holds before anything is written


class TagOps:
    """The three calls that the cache makes, over one int64 a slot. One instance for each group of layers."""

    def __init__(self) -> None:
        self.spec: KVSpec
        self.moves: list[tuple[list[int], list[int]]] = []
        self.sizes: list[int] = []  # of the storage, in blocks

    def kv_alloc(self, spec: KVSpec, num_blocks: int) -> list[Any]:
        self.spec = spec
        self.sizes.append(num_blocks)
        return [np.full(num_blocks * spec.block_size, JUNK)]

    def kv_grow(self, kv: list[Any], num_blocks: int) -> None:
        assert num_blocks * self.spec.block_size >= len(kv[0]), "storage never shrinks"
        tags = np.full(num_blocks * self.spec.block_size, JUNK)
        tags[: len(kv[0])] = kv[0]
        kv[0] = tags
        self.sizes.append(num_blocks)

    def kv_move(self, kv: list[Any], sources: Sequence[int], targets: Sequence[int]) -> None:
        self.moves.append((list(sources), list(targets)))
        for source, target in zip(sources, targets, strict=True):
            kv[0][target] = kv[0][source]


def tag(tokens: Sequence[int], salt: bytes = b"", group: str = TARGET) -> int:
    """Return what the last of `tokens` writes: like real keys and values, a pure function of all of `tokens`."""
    return hash((salt, group, tuple(tokens))) & 0x7FFFFFFF


def slot(table: BlockTable, logical: int, block_size: int) -> int:
    block = table.blocks[logical // block_size]
    assert block >= 0, f"slot {logical} was freed"
    return block * block_size + logical % block_size


def write(cache: Cache, table: BlockTable, at: int, tags: Sequence[int], group: str = TARGET) -> None:
    """Write tags into the logical slots [at, at + len(tags)), as a forward pass would."""
    for i, value in enumerate(tags):
        cache.kv(group)[0][slot(table, at + i, cache.block_size)] = value


def read(cache: Cache, table: BlockTable, start: int, stop: int, group: str = TARGET) -> list[int]:
    return [int(cache.kv(group)[0][slot(table, s, cache.block_size)]) for s in range(start, stop)]


def extend(cache: Cache, table: BlockTable, tokens: Sequence[int], salt: bytes = b"") -> None:
    """Compute and commit all of `tokens` that the table does not have yet, in one pass."""
    start = table.length
    table.reserve(len(tokens) - start)
    write(cache, table, start, [tag(tokens[: p + 1], salt) for p in range(start, len(tokens))])
    table.commit(range(len(tokens) - start), tokens[start:])


def follow(
    cache: Cache, table: BlockTable, group: str, tokens: Sequence[int], start: int | None = None, salt: bytes = b""
) -> None:
    """Let a further group compute `tokens` from what it has (or `start`) on, into committed and reserved slots."""
    start = table.computed(group) if start is None else start
    write(cache, table, start, [tag(tokens[: p + 1], salt, group) for p in range(start, len(tokens))], group)
    table.advance(group, start, tokens[start:])


def kept_from(cache: Cache, table: BlockTable) -> int:
    """Return the first slot that was not freed."""
    return sum(block < 0 for block in table.blocks) * cache.block_size


def holds(cache: Cache, table: BlockTable, tokens: Sequence[int], salt: bytes = b"") -> bool:
    """Return whether every slot that the table kept has what `tokens` wrote there."""
    kept = kept_from(cache, table)
    expected = [tag(tokens[: p + 1], salt) for p in range(kept, len(tokens))]
    return table.length == len(tokens) and read(cache, table, kept, table.length) == expected


def has_computed(cache: Cache, table: BlockTable, group: str, tokens: Sequence[int], salt: bytes = b"") -> bool:
    """Return whether every slot that a further group is said to have computed holds what it writes for `tokens`."""
    kept, computed = kept_from(cache, table), table.computed(group)
    expected = [tag(tokens[: p + 1], salt, group) for p in range(kept, computed)]
    return computed <= table.length and read(cache, table, kept, computed, group) == expected


def make_cache(
    capacity: int = 64,
    *,
    block_size: int = 4,
    max_window: int | None = None,
    fingerprint: bytes = b"model",
    share_prefixes: bool = True,
) -> tuple[Cache, TagOps]:
    ops = TagOps()
    spec = KVSpec(num_layers=1, num_kv_heads=1, head_width=1, block_size=block_size)
    cache = Cache(
        ops,  # type: ignore[arg-type]
        spec,
        capacity=capacity,
        max_window=max_window,
        fingerprint=fingerprint,
        share_prefixes=share_prefixes,
    )
    return cache, ops


def add_group(cache: Cache, name: str = "drafter", max_window: int | None = None) -> TagOps:
    """Add a group of layers whose slots are tags too."""
    ops = TagOps()
    spec = KVSpec(num_layers=1, num_kv_heads=2, head_width=1, block_size=cache.block_size)
    cache.add_group(name, ops, spec, max_window)  # type: ignore[arg-type]
    return ops
