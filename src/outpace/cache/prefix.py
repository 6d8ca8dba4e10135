"""What a block holds: an index from the digest of a sequence's beginning to the block with its last piece."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import sha256

from outpace.types import KVSpec


def root_digest(fingerprint: bytes, spec: KVSpec, salt: bytes) -> bytes:
    """Return the digest before position 0: sequences of other models, KV geometry, formats or salts never meet."""
    geometry = (spec.num_layers, spec.num_kv_heads, spec.head_width, spec.format, spec.block_size)
    parts = (fingerprint, repr(geometry).encode(), salt)
    return sha256(b"".join(len(part).to_bytes(8, "little") + part for part in parts)).digest()


def chain_digest(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Return the digest of a full block: it names its tokens and, through its parent's, all tokens before."""
    return sha256(parent + array("q", tokens).tobytes()).digest()


class PrefixIndex:
    """A two-way map between digests and blocks. Only committed full blocks may be added.

    It holds no references: the pool keeps an indexed block that no table holds until it needs the room.
    A digest says everything that a block's contents depend on, so any block of that digest will do. Beside the
    target's keys and values, which every indexed block has, a block may have those of further groups of layers: they
    are marked once all its slots are computed.
    """

    def __init__(self) -> None:
        self._block: dict[bytes, int] = {}
        self._digest: dict[int, bytes] = {}
        self._computed: dict[str, set[int]] = {}  # further groups -> blocks

    def __contains__(self, block: int) -> bool:
        return block in self._digest

    def __len__(self) -> int:
        return len(self._digest)

    def find(self, digest: bytes) -> int | None:
        """Return the block of this digest, if there is one."""
        return self._block.get(digest)

    def add(self, digest: bytes, block: int) -> None:
        """Make a committed full block findable."""
        assert digest not in self._block, "a digest has one block"
        assert block not in self._digest, "a block has one digest"
        self._block[digest] = block
        self._digest[block] = digest

    def forget(self, block: int) -> None:
        """Make a block unfindable, because it is about to be written again."""
        del self._block[self._digest.pop(block)]
        for blocks in self._computed.values():
            blocks.discard(block)

    def mark(self, block: int, group: str) -> None:
        """Remember that all slots of a findable block hold the group's keys and values."""
        assert block in self._digest, "only what can be found is remembered"
        self._computed.setdefault(group, set()).add(block)

    def is_computed(self, block: int, group: str) -> bool:
        """Return whether all slots of a block hold the group's keys and values."""
        return block in self._computed.get(group, ())

    def check(self) -> None:
        """Assert that the two directions agree, and that only findable blocks are marked."""
        assert {block: digest for digest, block in self._block.items()} == self._digest
        assert all(blocks <= self._digest.keys() for blocks in self._computed.values())
