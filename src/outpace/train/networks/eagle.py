"""The network of `models/eagle.py` in PyTorch, unrolled: each depth reads the last one's states (arXiv:2503.01840)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outpace.errors import UsageError
from outpace.models.eagle import EagleConfig
from outpace.train.batch import Batch
from outpace.train.networks.network import DraftNetwork
from outpace.train.networks.parts import RotaryTable, attend, heads, norm, rotate
from outpace.train.target import FrozenTarget
from outpace.weights.trained import Entries

_HEADS = ("num_heads", "num_kv_heads", "head_width")
_FUSION = 0.2  # of 1 / sqrt(inputs): the first features are nearly the target's last state alone


class EagleNetwork(DraftNetwork):
    """One decoder layer over [token, feature].

    Depth 1 at anchor i is the layer's output in slot i, over slots 1 to i with the target's features. Depth k is that
    in slot i + k - 1, whose feature is the output of depth k - 1; it sees the slots up to i, and those of its own
    guesses behind them. Gradients flow through all of it.
    """

    kind: ClassVar[str] = "eagle"
    decay: ClassVar[float] = 0.9
    share: ClassVar[float] = 1.0

    def __init__(
        self,
        target: FrozenTarget,
        *,
        taps: Sequence[int],
        head_tokens: Sequence[int],
        num_fixed: int,
        num_heads: int,
        num_kv_heads: int,
        feed_forward_width: int,
        generator: torch.Generator | None = None,
        num_depths: int = 6,
    ) -> None:
        super().__init__()
        sizes = target.config
        self.taps, self.head_tokens, self.num_fixed = tuple(taps), tuple(head_tokens), num_fixed
        self.num_heads, self.num_kv_heads, self.head_width = num_heads, num_kv_heads, sizes.head_width
        self.num_depths, self.max_depth, self.eps = num_depths, None, sizes.eps
        self._rope = RotaryTable(target.inv_freq, target.rope_scale)
        self._embedding = (target.embedding,)  # in a tuple: no parameter, nor saved with them
        width, queries, keys = sizes.width, num_heads * sizes.head_width, num_kv_heads * sizes.head_width

        def matrix(rows: int, columns: int, spread: float) -> nn.Parameter:
            x = torch.randn(rows, columns, generator=generator) * spread / math.sqrt(columns)
            return nn.Parameter(x.to(target.device))

        def ones() -> nn.Parameter:
            return nn.Parameter(torch.ones(width, device=target.device))

        self.fc = matrix(width, len(self.taps) * width, _FUSION)
        self.wq, self.wk, self.wv = (matrix(rows, 2 * width, 1.0) for rows in (queries, keys, keys))
        self.wo = matrix(width, queries, 0.0)
        self.gate, self.up = matrix(feed_forward_width, width, 1.0), matrix(feed_forward_width, width, 1.0)
        self.down = matrix(width, feed_forward_width, 0.0)
        self.token_norm, self.feature_norm, self.mlp_norm = ones(), ones(), ones()
        self.head_norm = nn.Parameter(target.final_norm.clone())
        self.head = nn.Parameter(target.unembedding[torch.tensor(self.head_tokens, device=target.device)].clone())

    @classmethod
    def fresh(
        cls,
        target: FrozenTarget,
        taps: tuple[int, ...],
        head_tokens: tuple[int, ...],
        num_fixed: int,
        generator: torch.Generator,
    ) -> Self:
        sizes = target.config
        return cls(
            target,
            taps=taps,
            head_tokens=head_tokens,
            num_fixed=num_fixed,
            num_heads=sizes.num_heads,
            num_kv_heads=sizes.num_kv_heads,
            feed_forward_width=sizes.feed_forward_width,
            generator=generator,
        )

    @classmethod
    def of(cls, entries: Entries, tensors: Mapping[str, Tensor], target: FrozenTarget) -> Self:
        config = EagleConfig.read(entries, target.identity.traits)
        own = {name: getattr(config, name) for name in ("taps", "head_tokens", "num_fixed", *_HEADS)}
        if config != EagleConfig(**own) or config.head_width != target.config.head_width:
            raise UsageError(f"{entries.where}: is an eagle of another form than Outpace trains: begin a new one")
        del own["head_width"]
        network = cls(target, **own, feed_forward_width=tensors["gate"].shape[0])
        network.load_state_dict(dict(tensors))
        return network

    def numbers(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in (*_HEADS, "num_fixed")},
            **{name: list(getattr(self, name)) for name in ("taps", "head_tokens")},
        }

    def states(self, batch: Batch, num_depths: int) -> list[Tensor]:
        which = torch.arange(len(batch.anchors), device=batch.anchors.device)[:, None]
        features = batch.features[:, :-1]
        width = features.shape[-1] // len(self.taps)
        g = features[..., -width:] + F.linear(features, self.fc)  # entry s: of slot s + 1
        u = self._inputs(batch.tokens[:, 1:], g)
        slots = torch.arange(1, batch.tokens.shape[1], device=u.device)
        keys, values = self._keys_values(u, slots)
        is_visible = slots <= batch.anchors[..., None]
        start = batch.anchors - 1
        own: list[tuple[Tensor, Tensor]] = []
        a = self._layer(u[which, start], g[which, start], batch.anchors, keys, values, is_visible, own)
        found = [norm(a, self.head_norm, self.eps)]
        for k in range(1, num_depths):
            slot = batch.anchors + k
            guesses = batch.tokens[which, slot.clamp(max=batch.tokens.shape[1] - 1)]
            u = self._inputs(guesses, a)
            own.append(self._keys_values(u, slot))
            a = self._layer(u, a, slot, keys, values, is_visible, own)
            found.append(norm(a, self.head_norm, self.eps))
        return found

    def _inputs(self, tokens: Tensor, features: Tensor) -> Tensor:
        embedded = norm(self._embedding[0][tokens], self.token_norm, self.eps)
        return torch.cat([embedded, norm(features, self.feature_norm, self.eps)], dim=-1)

    def _keys_values(self, u: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        k, v = (heads(F.linear(u, weight), self.head_width) for weight in (self.wk, self.wv))
        return rotate(k, *self._rope(slots)), v

    def _layer(
        self,
        u: Tensor,
        features: Tensor,
        slots: Tensor,
        keys: Tensor,
        values: Tensor,
        is_visible: Tensor,
        own: Sequence[tuple[Tensor, Tensor]],
    ) -> Tensor:
        q = rotate(heads(F.linear(u, self.wq), self.head_width), *self._rope(slots))
        none = q.new_zeros(*q.shape[:2], 0, *keys.shape[2:])
        own_keys, own_values = (torch.stack(x, dim=2) for x in zip(*own, strict=True)) if own else (none, none)
        attended = attend(q[:, :, None], keys, values, is_visible, own_keys, own_values)[:, :, 0]
        a = features + F.linear(attended, self.wo)
        h = norm(a, self.mlp_norm, self.eps)
        return a + F.linear(F.silu(F.linear(h, self.gate)) * F.linear(h, self.up), self.down)
