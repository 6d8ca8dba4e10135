"""Parts that the drafter networks share: rotary positions, and attention over a prefix and a few keys of one's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class RotaryTable:
    """Cosines and sines of positions, as `Ops.rope` computes them: float64 angles, rounded at the end."""

    def __init__(self, inv_freq: Tensor, scale: float) -> None:
        self._inv_freq, self._scale = inv_freq, scale

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin of each position's angles, both [..., K / 2] float32."""
        angles = positions.double()[..., None] * self._inv_freq
        return (angles.cos() * self._scale).float(), (angles.sin() * self._scale).float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return heads [..., H, K] turned by their positions' angles [..., K / 2]; pairs are (i, i + K / 2)."""
    cos, sin = cos[..., None, :].to(x.dtype), sin[..., None, :].to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def heads(x: Tensor, width: int) -> Tensor:
    """Return [..., H * K] as heads of K numbers, [..., H, K]."""
    return x.view(*x.shape[:-1], -1, width)


def norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Return the RMS norm over the last dimension, in float32."""
    return F.rms_norm(x.float(), x.shape[-1:], weight, eps)


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    is_visible: Tensor,
    own: Sequence[tuple[Tensor, Tensor]] = (),
) -> Tensor:
    """Return softmax(q k^T / sqrt(K)) v over a shared prefix and each query's own keys, [B, A, H * K].

    queries: [B, A, H, K], rotated. keys, values: [B, S, G, K] of the prefix. is_visible: [B, A, S]. own: further
    keys and values, one of each for every query: [B, A, G, K] each.
    """
    num_sequences, num_queries, heads, width = queries.shape
    size, groups = keys.shape[1], keys.shape[2]
    q = (queries * width**-0.5).unflatten(2, (groups, heads // groups)).permute(0, 2, 3, 1, 4)  # [B, G, H / G, A, K]
    flat = q.reshape(num_sequences, groups, -1, width)
    scores = (flat @ keys.permute(0, 2, 3, 1)).view(*q.shape[:4], size).float()
    scores = scores.masked_fill(~is_visible[:, None, None], float("-inf"))
    extra = [(q * key.transpose(1, 2)[:, :, None]).sum(-1, keepdim=True).float() for key, _ in own]
    weights = torch.softmax(torch.cat([scores, *extra], dim=-1), dim=-1).to(values.dtype)
    prefix = weights[..., :size].reshape(num_sequences, groups, -1, size) @ values.transpose(1, 2)
    out = prefix.view(q.shape)
    for j, (_, value) in enumerate(own):
        out = out + weights[..., size + j, None] * value.transpose(1, 2)[:, :, None]
    return out.permute(0, 3, 1, 2, 4).reshape(num_sequences, num_queries, heads * width)
