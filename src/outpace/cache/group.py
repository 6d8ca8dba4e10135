"""A named set of layers: where the keys and values of one network lie in the pool's blocks."""

from __future__ import annotations

from dataclasses import dataclass, field

from outpace.ops.layers import KV
from outpace.ops.protocol import Ops
from outpace.types import KVSpec

TARGET = "target"


@dataclass(slots=True, eq=False)
class Group:
    """The layers of one network: the target's, or those of a drafter. Block ids mean the same in all groups.

    max_window: the largest sliding window, if every layer has one: a token at position p needs positions
    > p - max_window. num_blocks: blocks of storage that exist. is_tapped: its network reads the target's hidden
    states, so that it can only compute positions while the target does.
    """

    name: str
    ops: Ops
    spec: KVSpec
    max_window: int | None
    num_blocks: int
    is_tapped: bool = False
    kv: KV = field(init=False)

    def __post_init__(self) -> None:
        assert self.max_window is None or self.max_window >= 1, "a token always sees itself"
        self.kv = self.ops.kv_alloc(self.spec, self.num_blocks)

    def grow(self, num_blocks: int) -> None:
        """Grow to at least `num_blocks`; what is stored stays. Where there is no memory, nothing changes."""
        if num_blocks > self.num_blocks:
            self.ops.kv_grow(self.kv, num_blocks)
            self.num_blocks = num_blocks

    def copy(self, source: int, target: int, count: int) -> None:
        """Copy the first `count` slots of a block to another block."""
        old, new = source * self.spec.block_size, target * self.spec.block_size
        self.ops.kv_move(self.kv, list(range(old, old + count)), list(range(new, new + count)))
