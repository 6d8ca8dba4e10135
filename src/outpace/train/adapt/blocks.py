"""Where the blocks of a response lie, what their rows hold and predict, and which keys each row sees.

A text is seen twice: as it is (clean, causal), and as rows of blocks, which may hold something else than the text.
A row of a block sees the clean tokens before its block and the rows of its own block: what BD3-LM's mask
(arXiv:2503.09573, section 3.1) says of the noised half of [noised; clean]. Clean tokens see only clean ones before
them, as in the autoregressive model, whose cache they are.

    shift 1    rows s ... s + B - 1 predict tokens s + 1 ... s + B; row s holds a token that is always known
    shift 0    rows s ... s + B - 1 predict tokens s ... s + B - 1
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outpace.train.text.corpus import Conversation

_MULTIPLE = 8  # of padded lengths: attention kernels want their masks' rows aligned


@dataclass(frozen=True, slots=True)
class Blocks:
    """Some conversations, S of them in T columns, and the R rows of their blocks.

    tokens: [S, T], padded. lengths: [S]. starts: [S], where the first block's first row stands. size: rows of a block.
    is_row: [S, R], False for padding. inputs: [S, R], the text's token at each row. targets: [S, R], the token that
    it predicts. is_text: [S, R], False where the target is behind the text's end, where the end is said again.
    """

    tokens: Tensor
    lengths: Tensor
    starts: Tensor
    size: int
    shift: int
    is_row: Tensor
    inputs: Tensor
    targets: Tensor
    is_text: Tensor

    @property
    def positions(self) -> Tensor:
        """Where each row stands, [S, R]."""
        return self.starts[:, None] + torch.arange(self.is_row.shape[1], device=self.starts.device)

    @property
    def is_response(self) -> Tensor:
        """Which clean tokens predict a token of the response, [S, T]: those before it, and all but the last of it."""
        place = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return (place >= self.starts[:, None] + self.shift - 1) & (place < self.lengths[:, None] - 1)

    def by_block(self, x: Tensor) -> Tensor:
        """Return something of each row, [S, R, ...], as [S, R / B, B, ...]."""
        return x.view(x.shape[0], -1, self.size, *x.shape[2:])


def make_blocks(
    conversations: Sequence[Conversation],
    size: int,
    shift: int,
    ends: Collection[int],
    device: torch.device,
    rng: np.random.Generator | None = None,
) -> Blocks | None:
    """Return the blocks of some conversations; None if there are none.

    ends: tokens that end a text. Behind such an end the last block is filled up with it; a text that was cut off loses
    its last, incomplete block. rng: the first block begins up to B - 1 tokens late (None: at the response).
    """
    lengths = np.array([len(own.tokens) for own in conversations])
    prompts = np.array([own.num_prompt for own in conversations])
    is_ended = np.array([int(own.tokens[-1]) in ends for own in conversations])
    starts = prompts - shift
    if rng is not None:
        starts = starts + rng.integers(0, np.clip(lengths - prompts, 1, size))
    left = lengths - shift - starts  # targets from the first row on
    count = np.maximum(np.where(is_ended, -(-left // size), left // size), 0)
    if not count.max():
        return None
    columns = -(-int(lengths.max()) // _MULTIPLE) * _MULTIPLE
    text = np.zeros((len(conversations), columns + 2 * size + 1), np.int64)
    for row, own, ended in zip(text, conversations, is_ended, strict=True):
        row[: len(own.tokens)] = own.tokens
        if ended:
            row[len(own.tokens) :] = own.tokens[-1]
    rows = np.arange(count.max() * size)
    is_row = rows < (count * size)[:, None]
    places = np.where(is_row, starts[:, None] + rows, 0)

    def on_device(x: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).to(device)

    return Blocks(
        on_device(text[:, :columns]),
        on_device(lengths),
        on_device(starts),
        size,
        shift,
        on_device(is_row),
        on_device(np.take_along_axis(text, places, 1)),
        on_device(np.take_along_axis(text, places + shift, 1)),
        on_device(is_row & (places + shift < lengths[:, None])),
    )


def visible(blocks: Blocks, window: int | None, *, is_causal: bool) -> Tensor:
    """Return which keys each row sees, [S, 1, R, T + R]: the T clean tokens, then the R rows.

    window: of the layer, if it has one: what is further back is hidden. is_causal: a row sees no later row.
    """
    device, num_rows = blocks.tokens.device, blocks.is_row.shape[1]
    clean = torch.arange(blocks.tokens.shape[1], device=device)
    rows = torch.arange(num_rows, device=device)
    block = rows // blocks.size
    firsts = blocks.starts[:, None] + block * blocks.size
    sees_clean = clean < firsts[..., None]
    own = block[:, None] == block
    if is_causal:
        own &= rows[:, None] >= rows
    if window is not None:
        sees_clean &= blocks.positions[..., None] - clean < window
        own &= rows[:, None] - rows < window
    return torch.cat([sees_clean, own.expand(len(firsts), -1, -1)], dim=2)[:, None]
