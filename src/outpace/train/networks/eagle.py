"""The network of `models/eagle.py` in PyTorch, unrolled: each depth reads the last one's states (arXiv:2503.01840)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outpace.errors import UsageError
from outpace.models.eagle import EagleConfig
from outpace.train.batch import Batch
from outpace.train.networks.network import DraftNetwork
from outpace.train.networks.parts import RotaryTable, attend, bias_of, heads, norm, pick, rotate
from outpace.train.target import FrozenTarget
from outpace.weights.trained import Entries

_HEADS = ("num_heads", "num_kv_heads", "head_width")
Turn = tuple[Tensor, Tensor]  # cosines and sines of positions
_FUSION = 0.2  # of 1 / sqrt(inputs): the first features are nearly the target's last state alone


@dataclass(slots=True)
class Prefix:
    """What guesses behind the anchors of a batch see.

    anchors: [B, A]. keys, values: of the text's slots, [B, S, G, K]; bias: which of them an anchor sees, [B, A, S].
    own_keys, own_values: of the guesses before them, [B, A, J, G, K].
    """

    anchors: Tensor
    keys: Tensor
    values: Tensor
    bias: Tensor
    own_keys: Tensor
    own_values: Tensor


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
        self.num_depths, self.eps = num_depths, sizes.eps
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
        rows = target.unembedding[torch.tensor(self.head_tokens, device=target.device)]
        self.head = nn.Parameter(rows * sizes.logit_scale)

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
        prefix, a = self.begin(batch)
        found = [self.normed(a)[:, :, 0]]
        for k in range(1, num_depths):
            guesses = batch.tokens.gather(1, (batch.anchors + k).clamp(max=batch.tokens.shape[1] - 1))
            a = self.extend(prefix, k, guesses[..., None], a)
            found.append(self.normed(a)[:, :, 0])
        return found

    def normed(self, states: Tensor) -> Tensor:
        """Return what the head multiplies of the layer's outputs."""
        return norm(states, self.head_norm, self.eps)

    def begin(self, batch: Batch) -> tuple[Prefix, Tensor]:
        """Return what all guesses at a batch's anchors see, and the layer's output behind each anchor, [B, A, 1, D]."""
        features = batch.features[:, :-1]
        width = features.shape[-1] // len(self.taps)
        g = features[..., -width:] + F.linear(features, self.fc)  # entry s: of slot s + 1
        u = self._inputs(batch.tokens[:, 1:], g)
        slots = torch.arange(1, batch.tokens.shape[1], device=u.device)
        keys, values = self._keys_values(u, self._rope(slots))
        none = keys.new_zeros(*batch.anchors.shape, 0, *keys.shape[2:])
        bias = bias_of(slots <= batch.anchors[..., None], keys.dtype)
        prefix = Prefix(batch.anchors, keys, values, bias, none, none)
        start = batch.anchors - 1
        turn = self._rope(batch.anchors[..., None])
        return prefix, self._layer(pick(u, start)[:, :, None], pick(g, start)[:, :, None], turn, prefix)

    def extend(
        self, prefix: Prefix, depth: int, tokens: Tensor, features: Tensor, sees: Tensor | None = None
    ) -> Tensor:
        """Return the layer's output at guesses `depth` places behind the anchors, [B, A, M, D]; M for each anchor.

        tokens: [B, A, M]. features: the outputs that they were guessed from, [B, A, M, D]. sees: [B, A, M, J + M],
        which of the J guesses before and of these M each of them sees (None: all). The prefix grows by them.
        """
        turn = self._rope((prefix.anchors + depth)[..., None])
        u = self._inputs(tokens, features)
        keys, values = self._keys_values(u, turn)
        prefix.own_keys = torch.cat([prefix.own_keys, keys], dim=2)
        prefix.own_values = torch.cat([prefix.own_values, values], dim=2)
        return self._layer(u, features, turn, prefix, sees)

    def _inputs(self, tokens: Tensor, features: Tensor) -> Tensor:
        embedded = norm(self._embedding[0][tokens], self.token_norm, self.eps)
        return torch.cat([embedded, norm(features, self.feature_norm, self.eps)], dim=-1)

    def _keys_values(self, u: Tensor, turn: Turn) -> tuple[Tensor, Tensor]:
        k, v = (heads(F.linear(u, weight), self.head_width) for weight in (self.wk, self.wv))
        return rotate(k, *turn), v

    def _layer(self, u: Tensor, features: Tensor, turn: Turn, prefix: Prefix, sees: Tensor | None = None) -> Tensor:
        q = rotate(heads(F.linear(u, self.wq), self.head_width), *turn)
        attended = attend(q, prefix.keys, prefix.values, prefix.bias, prefix.own_keys, prefix.own_values, sees)
        a = features + F.linear(attended, self.wo)
        h = norm(a, self.mlp_norm, self.eps)
        return a + F.linear(F.silu(F.linear(h, self.gate)) * F.linear(h, self.up), self.down)
