"""The network of `models/block.py` in PyTorch: all of an anchor's guesses in one pass (DFlash, arXiv:2602.06036)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outpace.errors import UsageError
from outpace.models.block import BlockConfig
from outpace.train.batch import Batch
from outpace.train.networks.network import DraftNetwork
from outpace.train.networks.parts import RotaryTable, attend, bias_of, heads, norm, pick, rotate
from outpace.train.target import FrozenTarget
from outpace.weights.trained import Entries

_NUM_LAYERS, _NUM_MASKS = 2, 7
_FUSION = 0.2  # of 1 / sqrt(inputs), as for `eagle`
_MASKS = 0.02


class BlockNetwork(DraftNetwork):
    """An anchor token and masks behind it, over the target's features as keys and values.

    Depth k at anchor i is the state of mask k: it sees the features of the positions up to i - 1, the anchor and all
    masks, in every layer.
    """

    kind: ClassVar[str] = "block"
    decay: ClassVar[float] = math.exp(-1 / 4)
    share: ClassVar[float] = 1 / 6

    def __init__(
        self,
        target: FrozenTarget,
        config: BlockConfig,
        feed_forward_width: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = target.config
        self.config, self.eps = config, sizes.eps
        self.taps, self.head_tokens, self.num_fixed = config.taps, config.head_tokens, config.num_fixed
        self.num_depths = config.num_masks
        self._rope = RotaryTable(target.inv_freq, target.rope_scale)
        self._embedding = (target.embedding,)  # in a tuple: no parameter, nor saved with them
        width, features = sizes.width, len(config.taps) * sizes.width

        def matrix(rows: int, columns: int, spread: float) -> nn.Parameter:
            return nn.Parameter((torch.randn(rows, columns, generator=generator) * spread).to(target.device))

        def ones() -> nn.Parameter:
            return nn.Parameter(torch.ones(width, device=target.device))

        self.fc = matrix(width, features, _FUSION / math.sqrt(features))
        self.mask_fc = matrix(width, features, _FUSION / math.sqrt(features))
        self.masks = matrix(config.num_masks, width, _MASKS)
        self.context_norm, self.token_norm = ones(), ones()
        for index in range(config.num_layers):
            self.add_module(str(index), _Layer(config, width, feed_forward_width, generator, target.device))
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
        config = BlockConfig(
            taps,
            _NUM_LAYERS,
            _NUM_MASKS,
            sizes.num_heads,
            sizes.num_kv_heads,
            sizes.head_width,
            num_fixed,
            head_tokens,
        )
        return cls(target, config, sizes.feed_forward_width, generator)

    @classmethod
    def of(cls, entries: Entries, tensors: Mapping[str, Tensor], target: FrozenTarget) -> Self:
        config = BlockConfig.read(entries, target.identity.traits)
        if config.head_width != target.config.head_width:
            raise UsageError(f"{entries.where}: is a block of another form than Outpace trains: begin a new one")
        network = cls(target, config, tensors["0.gate"].shape[0])
        network.load_state_dict(dict(tensors))
        return network

    def numbers(self) -> dict[str, Any]:
        names = ("num_layers", "num_masks", "num_heads", "num_kv_heads", "head_width", "num_fixed")
        lists = {name: list(getattr(self.config, name)) for name in ("taps", "head_tokens")}
        return {name: getattr(self.config, name) for name in names} | lists

    def states(self, batch: Batch, num_depths: int) -> list[Tensor]:
        features = batch.features[:, :-1]  # no anchor sees the last one
        last = features[..., -(features.shape[-1] // len(self.taps)) :]
        context = norm(last + F.linear(features, self.fc), self.context_norm, self.eps)
        positions = torch.arange(features.shape[1], device=features.device)
        base = pick(last, batch.anchors - 1) + F.linear(pick(features, batch.anchors - 1), self.mask_fc)
        tokens = batch.tokens.gather(1, batch.anchors)
        anchors = norm(self._embedding[0][tokens], self.token_norm, self.eps)
        x = torch.cat([anchors[:, :, None].float(), self.masks + base[:, :, None]], dim=2)
        slots = batch.anchors[..., None] + torch.arange(x.shape[2], device=x.device)
        bias = bias_of(positions < batch.anchors[..., None], context.dtype)
        context_turn, block_turn = self._rope(positions), self._rope(slots)
        for index in range(self.config.num_layers):
            layer = self.get_submodule(str(index))
            x = layer(x, context, bias, context_turn, block_turn, self.eps)
        normed = norm(x, self.head_norm, self.eps)
        return [normed[:, :, k] for k in range(1, num_depths + 1)]


class _Layer(nn.Module):
    """One decoder layer over blocks [B, A, 1 + masks, D], whose prefix is the context."""

    def __init__(
        self,
        config: BlockConfig,
        width: int,
        feed_forward_width: int,
        generator: torch.Generator | None,
        device: torch.device,
    ) -> None:
        super().__init__()
        self._head_width = config.head_width
        queries, keys = config.num_heads * config.head_width, config.num_kv_heads * config.head_width

        def matrix(rows: int, columns: int, spread: float = 1.0) -> nn.Parameter:
            x = torch.randn(rows, columns, generator=generator) * spread / math.sqrt(columns)
            return nn.Parameter(x.to(device))

        self.attn_norm = nn.Parameter(torch.ones(width, device=device))
        self.wq, self.wk, self.wv = (matrix(rows, width) for rows in (queries, keys, keys))
        self.wo = matrix(width, queries, 0.0)
        self.mlp_norm = nn.Parameter(torch.ones(width, device=device))
        self.gate, self.up = matrix(feed_forward_width, width), matrix(feed_forward_width, width)
        self.down = matrix(width, feed_forward_width, 0.0)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        bias: Tensor,
        context_turn: tuple[Tensor, Tensor],
        block_turn: tuple[Tensor, Tensor],
        eps: float,
    ) -> Tensor:
        y = norm(x, self.attn_norm, eps)
        q, own_keys, own_values = (heads(F.linear(y, w), self._head_width) for w in (self.wq, self.wk, self.wv))
        keys, values = (heads(F.linear(context, w), self._head_width) for w in (self.wk, self.wv))
        attended = attend(
            rotate(q, *block_turn),
            rotate(keys, *context_turn),
            values,
            bias,
            rotate(own_keys, *block_turn),
            own_values,
        )
        x = x + F.linear(attended, self.wo)
        h = norm(x, self.mlp_norm, eps)
        return x + F.linear(F.silu(F.linear(h, self.gate)) * F.linear(h, self.up), self.down)
