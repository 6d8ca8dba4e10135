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
    """Return the RMS norm over the last dimension, computed in float32; under autocast in the type of products.

    There, every product with it would cast it anew.
    """
    found = F.rms_norm(x.float(), x.shape[-1:], weight, eps)
    device = x.device.type
    return found.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else found


def pick(x: Tensor, places: Tensor) -> Tensor:
    """Return rows of x [B, N, D] by their places [B, A]: [B, A, D].

    On a device, indexing would sort the places for its gradient; selection does not.
    """
    firsts = torch.arange(0, x.shape[0] * x.shape[1], x.shape[1], device=x.device)
    return x.flatten(0, 1).index_select(0, (places + firsts[:, None]).flatten()).view(*places.shape, -1)


def bias_of(is_visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to the scores of keys: 0 where they are visible, minus infinity elsewhere."""
    return torch.zeros(is_visible.shape, dtype=dtype, device=is_visible.device).masked_fill_(~is_visible, float("-inf"))


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor,
    own_keys: Tensor,
    own_values: Tensor,
    sees: Tensor | None = None,
) -> Tensor:
    """Return softmax(q k^T / sqrt(K)) v over a shared prefix and the keys of each anchor's own, [B, A, M, H * K].

    queries: [B, A, M, H, K], rotated: M places behind each of A anchors. keys, values: [B, S, G, K] of the prefix.
    bias: [B, A, S] (`bias_of`). own_keys, own_values: [B, A, J, G, K]. sees: [B, A, M, J], which of them a place sees
    (None: all). Scores have the type of the keys; the softmax is computed in float32.
    """
    num_sequences, anchors, places, num_heads, width = queries.shape
    size, groups, num_own = keys.shape[1], keys.shape[2], own_keys.shape[2]
    q = (queries * width**-0.5).unflatten(3, (groups, -1)).permute(0, 3, 1, 4, 2, 5)  # [B, G, A, H / G, M, K]
    flat = q.reshape(num_sequences, groups, -1, width)
    scores = (flat @ keys.permute(0, 2, 3, 1)).view(*q.shape[:-1], size) + bias[:, None, :, None, None]
    parts = [scores]
    if num_own:
        rows = flat.view(num_sequences, groups, anchors, -1, width)
        own = (rows @ own_keys.permute(0, 3, 1, 4, 2)).view(*q.shape[:-1], num_own)
        if sees is not None:
            own = own.masked_fill(~sees[:, None, :, None], float("-inf"))
        parts.append(own)
    if scores.dtype.itemsize == 2 and (size + num_own) % 8:  # rows that begin where matrix units like them
        parts.append(scores.new_full((), float("-inf")).expand(*q.shape[:-1], -(size + num_own) % 8))
    whole = torch.cat(parts, dim=-1) if len(parts) > 1 else scores
    weights = torch.softmax(whole, dim=-1, dtype=values.dtype)
    prefix = weights[..., :size].reshape(num_sequences, groups, -1, size)
    out = (prefix @ values.transpose(1, 2)).view(q.shape)
    if num_own:
        own = weights[..., size : size + num_own].reshape(num_sequences, groups, anchors, -1, num_own)
        out = out + (own @ own_values.permute(0, 3, 1, 2, 4)).view(q.shape)
    return out.permute(0, 2, 4, 1, 3, 5).reshape(num_sequences, anchors, places, num_heads * width)
