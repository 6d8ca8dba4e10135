"""Parts that the drafter networks share: rotary positions, and attention over a prefix and a few keys of one's own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class RotaryTable:
    """Cosines and sines of positions, as `Ops.rope` computes them: float64 angles, rounded at the end."""

    def __init__(self, inv_freq: Tensor, scale: float) -> None:
        self._inv_freq = inv_freq
        self._scale = torch.where(inv_freq == 0, 1.0, torch.full_like(inv_freq, scale))  # still pairs are left alone

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
    own_keys: Tensor,
    own_values: Tensor,
    sees: Tensor | None = None,
) -> Tensor:
    """Return softmax(q k^T / sqrt(K)) v over a shared prefix and the keys of each anchor's own, [B, A, M, H * K].

    queries: [B, A, M, H, K], rotated: M places behind each of A anchors. keys, values: [B, S, G, K] of the prefix.
    is_visible: [B, A, S]. own_keys, own_values: [B, A, J, G, K]. sees: [B, A, M, J], which of them a place sees (None:
    all).
    """
    num_sequences, anchors, places, num_heads, width = queries.shape
    size, groups = keys.shape[1], keys.shape[2]
    q = (queries * width**-0.5).unflatten(3, (groups, -1)).permute(0, 3, 4, 1, 2, 5)  # [B, G, H / G, A, M, K]
    flat = q.reshape(num_sequences, groups, -1, width)
    scores = (flat @ keys.permute(0, 2, 3, 1)).view(*q.shape[:-1], size).float()
    scores = scores.masked_fill(~is_visible[:, None, None, :, None], float("-inf"))
    own = (q @ own_keys.permute(0, 3, 1, 4, 2)[:, :, None]).float()  # [B, G, H / G, A, M, J]
    if sees is not None:
        own = own.masked_fill(~sees[:, None, None], float("-inf"))
    weights = torch.softmax(torch.cat([scores, own], dim=-1), dim=-1).to(values.dtype)
    prefix = weights[..., :size].reshape(num_sequences, groups, -1, size) @ values.transpose(1, 2)
    out = prefix.view(q.shape) + weights[..., size:] @ own_values.permute(0, 3, 1, 2, 4)[:, :, None]
    return out.permute(0, 3, 4, 1, 2, 5).reshape(num_sequences, anchors, places, num_heads * width)
