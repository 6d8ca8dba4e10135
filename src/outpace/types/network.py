"""What a network is run on: stored tensors, the geometry of its cache, one sequence's part of a pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

KVFormat = Literal["f32", "bf16", "int8"]
Quantization = Literal[
    "q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0", "iq4_nl", "iq4_xs", "q3_k", "q2_k"
]


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor as a file stores it: bytes, their format, and the logical shape.

    data: uint8 [rows, bytes per row], usually memory-mapped; a row is the last dimension.
    format: a name of `outpace.ops.formats.BLOCKS`, such as "F32", "BF16", "Q8_0", "Q4_K", "MXFP4".
    shape: logical, row-major (out_features, in_features) as in PyTorch, or (n,).
    """

    name: str
    data: NDArray[np.uint8]
    format: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class KVSpec:
    """Geometry and storage of the keys and values of one group of layers.

    int8 keeps one float32 scale per token, head and group of 32 channels
    (the whole head where its width is no multiple of 32).
    """

    num_layers: int
    num_kv_heads: int
    head_width: int
    format: KVFormat = "bf16"
    block_size: int = 32  # slots in a block

    @property
    def scale_group(self) -> int:
        """Channels that share an int8 scale."""
        return 32 if self.head_width % 32 == 0 else self.head_width

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values, all layers, scales included."""
        per_head = {
            "f32": 4 * self.head_width,
            "bf16": 2 * self.head_width,
            "int8": self.head_width + 4 * (self.head_width // self.scale_group),
        }[self.format]
        return 2 * self.num_layers * self.num_kv_heads * per_head


@dataclass(slots=True)
class Segment:
    """One sequence's part of a forward pass.

    tokens = pending tokens (a chain that continues the context), then draft nodes.
    parents[i] in [-1, i) is draft node i's parent; -1 is the last pending token; empty: no draft.
    Token j is stored in slot start + j; its position is start + j in the chain, and
    start + len(pending) + depth (root's children have depth 0) in the tree.
    A "tree" token sees the context, and its ancestors and itself in the segment.
    A "full" segment has no draft; its tokens see the context and the whole segment.
    The last `num_scored` tokens get logits.
    stored: the parents of draft nodes that earlier passes have put into the slots from `start` on. Then all tokens are
    nodes of the same draft, which grows level by level: token j is node len(stored) + j, and `parents` may name stored
    ones.
    """

    blocks: Sequence[int]  # block table: slot s lives in blocks[s // block_size]; -1 was freed
    start: int  # slots before this one are the context
    tokens: Sequence[int]
    parents: Sequence[int] = ()
    num_scored: int = 1
    kind: Literal["tree", "full"] = "tree"
    stored: Sequence[int] = ()

    @property
    def num_pending(self) -> int:
        """Length of the chain before the draft."""
        return len(self.tokens) - len(self.parents)
