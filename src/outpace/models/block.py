"""The network of the trained drafter `block` (DFlash, arXiv:2602.06036): a block of masks, filled in one pass.

    features of position i       hidden states after the tapped layers of the target, each RMS-normalised: f [taps * D]
    context of position i        c = context_norm(last D of f + fc f); every layer's keys and values are products of c
    block behind position i      x_0 = token_norm(embedding of token i + 1), the anchor
                                 x_j = masks_j + last D of f + mask_fc f,   f of position i;  j = 1 ... num_masks
    layers                       decoder layers in which each place of the block sees the context and the whole block
    guess of token i + 1 + j     head head_norm(x_j)

Published networks (DFlash itself) read the taps as they are, c = context_norm(fc f), and have one mask, a token's
embedding: x_0 and x_j are embeddings, without a norm and without features. `BlockConfig` says which.

So one pass guesses num_masks tokens, however many are wanted. The context's slots are a function of the tokens up to
there, as in the target's own cache; the block's are overwritten once the target has come that far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outpace.models.reduced_head import ReducedHead, read_head
from outpace.models.rope import rotary
from outpace.models.transformer import Transformer
from outpace.ops.formats import dequantise
from outpace.ops.layers import KV, Array, DecoderLayer, Layer, Plan, Rope, Vector, Weight
from outpace.ops.protocol import Ops
from outpace.types import KVFormat, KVSpec, RawTensor, Segment
from outpace.weights.trained import DrafterTarget, Entries, check_shapes

_PARTS = ("attn_norm", "wq", "wk", "wv", "wo", "mlp_norm", "gate", "up", "down")


@dataclass(frozen=True, slots=True)
class BlockConfig:
    """What a checkpoint says beside its tensors.

    taps: layers of the target, 1 to the last one, whose outputs it reads; the last is the residual's. num_masks: tokens
    that one pass guesses. num_fixed, head_tokens: as in `EagleConfig`.

    The rest is for published networks. mask_token: whose embedding the masks are; None: ours, as above. eps and
    inv_freq: None for the target's. has_head_norms: an RMS norm over each head of queries and keys. has_head: else the
    head is the target's.
    """

    taps: tuple[int, ...]
    num_layers: int
    num_masks: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    num_fixed: int
    head_tokens: tuple[int, ...]
    mask_token: int | None = None
    eps: float | None = None
    inv_freq: tuple[float, ...] | None = None
    rope_scale: float = 1.0
    has_head_norms: bool = False
    has_head: bool = True

    @classmethod
    def read(cls, entries: Entries, target: DrafterTarget) -> BlockConfig:
        """Return what a drafter's file says; raises WeightsError for what no network can be."""
        num_fixed, head_tokens = read_head(entries, target.vocab_size)
        names = ("num_layers", "num_masks", "num_heads", "num_kv_heads", "head_width")
        counts = {name: entries.count(name) for name in names}
        taps, last = entries.counts("taps"), target.num_layers or 0
        for name, count in counts.items():
            if not count:
                raise entries.error(name, "must be at least 1, is 0")
        if counts["num_heads"] % counts["num_kv_heads"]:
            raise entries.error("num_heads", f"must be a multiple of num_kv_heads, is {counts['num_heads']}")
        if not taps or list(taps) != sorted(set(taps)) or not 1 <= taps[0] <= taps[-1] <= last:
            raise entries.error("taps", f"must be different layers in [1, {last}], in order, are {taps}")
        mask_token = entries.count("mask_token") if entries.raw.get("mask_token") is not None else None
        if mask_token is not None and mask_token >= target.vocab_size:
            raise entries.error("mask_token", f"must be in [0, {target.vocab_size}), is {mask_token}")
        inv_freq, rope_scale = rotary(entries, counts["head_width"])
        return cls(
            taps=taps,
            num_fixed=num_fixed,
            head_tokens=head_tokens,
            mask_token=mask_token,
            eps=entries.number("eps") if entries.raw.get("eps") is not None else None,
            inv_freq=inv_freq,
            rope_scale=rope_scale,
            has_head_norms=entries.flag("head_norms", False),
            has_head=entries.flag("head", True),
            **counts,
        )

    def shapes(self, width: int, feed_forward_width: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor for a target of that width."""
        queries, keys, features = (
            self.num_heads * self.head_width,
            self.num_kv_heads * self.head_width,
            len(self.taps) * width,
        )
        layer: dict[str, tuple[int, ...]] = {
            **{"attn_norm": (width,), "mlp_norm": (width,)},
            **{"wq": (queries, width), "wk": (keys, width), "wv": (keys, width), "wo": (width, queries)},
            **{"gate": (feed_forward_width, width), "up": (feed_forward_width, width)},
            **{"down": (width, feed_forward_width)},
            **({"q_norm": (self.head_width,), "k_norm": (self.head_width,)} if self.has_head_norms else {}),
        }
        own: dict[str, tuple[int, ...]] = {
            **{"mask_fc": (width, features), "masks": (self.num_masks, width), "token_norm": (width,)},
        }
        return {
            **{"fc": (width, features), "context_norm": (width,), "head_norm": (width,)},
            **(own if self.mask_token is None else {}),
            **{f"{i}.{part}": shape for i in range(self.num_layers) for part, shape in layer.items()},
            **({"head": (len(self.head_tokens), width)} if self.has_head else {}),
        }


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The network, ready to run on the ops of its target, with the target's embedding and rotary frequencies."""

    config: BlockConfig
    ops: Ops
    eps: float
    embedding: Weight
    ones: Vector
    fc: Weight
    mask_fc: Weight | None
    masks: Array
    no_query: Array  # zeros [1, H * K]
    context_norm: Vector
    token_norm: Vector | None
    layers: tuple[DecoderLayer, ...]
    handles: tuple[Layer, ...]
    head_norm: Vector
    head: ReducedHead

    def spec(self, format: KVFormat, block_size: int) -> KVSpec:
        """Return the geometry of its keys and values."""
        config = self.config
        return KVSpec(config.num_layers, config.num_kv_heads, config.head_width, format, block_size)

    def store(self, plan: Plan, taps: Sequence[Array], num_positions: int, kv: KV) -> None:
        """Write the keys and values of the plan's T positions; taps: the target's hidden states there, [T, D] each."""
        ops = self.ops
        context = ops.rms_norm(self._mixed(taps, self.fc), self.context_norm, self.eps)
        queries = ops.select(self.no_query, [0] * num_positions)  # the context itself asks for nothing
        for layer, handle in zip(self.layers, self.handles, strict=True):
            keys, values = ops.linear(context, layer.wk), ops.linear(context, layer.wv)
            ops.rope_store(queries, keys, values, handle, kv, plan)

    def fill(self, anchors: Plan, plan: Plan, sizes: Sequence[int], taps: Sequence[Array], kv: KV) -> Array:
        """Return the states of all blocks' masks, [sum of sizes, D], one block behind another.

        anchors: the last token of each of S sequences. plan: their blocks, full segments of an anchor and sizes[i]
        masks. taps: the target's hidden states at the position before the anchor, [S, D] each. Writes the blocks'
        slots.
        """
        ops = self.ops
        x = self._blocks(anchors, sizes, taps)
        x = ops.decoder_layers(x, self.handles, kv, plan)
        first, rows = 0, list[int]()
        for size in sizes:
            rows += range(first + 1, first + 1 + size)
            first += 1 + size
        return ops.select(x, rows)

    def _blocks(self, anchors: Plan, sizes: Sequence[int], taps: Sequence[Array]) -> Array:
        """Return what goes into the first layer, [sum of (1 + size), D]."""
        ops, count = self.ops, len(sizes)
        tokens = ops.embed(self.embedding, anchors)
        masks = ops.select(self.masks, [j for size in sizes for j in range(size)])
        if self.token_norm is not None:
            tokens = ops.rms_norm(tokens, self.token_norm, self.eps)
        if self.mask_fc is not None:
            base = self._mixed(taps, self.mask_fc)
            masks = ops.add(masks, ops.select(base, [i for i, size in enumerate(sizes) for _ in range(size)]))
        first, order = count, []
        for i, size in enumerate(sizes):
            order += [i, *range(first, first + size)]
            first += size
        return ops.select(ops.stack([tokens, masks]), order)

    def _mixed(self, taps: Sequence[Array], weight: Weight) -> Array:
        """Return the last tap and a product of all of them, each normalised, [T, D]; of published ones the product."""
        if self.config.mask_token is not None:
            return self.ops.linear(self.ops.concat(taps), weight)
        normed = [self.ops.rms_norm(tap, self.ones, self.eps) for tap in taps]
        return self.ops.add(normed[-1], self.ops.linear(self.ops.concat(normed), weight))

    def normed(self, states: Array) -> Array:
        """Return what the head's rows are multiplied with, [T, D]."""
        return self.ops.rms_norm(states, self.head_norm, self.eps)


def level_bytes(config: BlockConfig, tensors: Mapping[str, RawTensor]) -> tuple[int, int]:
    """Return how many bytes of weights the first guess reads, and each further one: the block comes in one pass.

    Without further rows of the head, and without the head where it is the target's.
    """
    num_bytes = {name: tensor.data.nbytes for name, tensor in tensors.items()}
    if config.has_head:
        num_bytes["head"] = num_bytes["head"] * config.num_fixed // len(config.head_tokens)
    return sum(num_bytes.values()), 0


def build(config: BlockConfig, tensors: Mapping[str, RawTensor], target: Transformer) -> Block:
    """Return the network on the target's ops; raises WeightsError for tensors that do not fit the config."""
    ops, sizes = target.ops, target.config
    eps = sizes.eps if config.eps is None else config.eps
    rope = target.rope_for(config.head_width, config.inv_freq, config.rope_scale)
    check_tensors(config, tensors, sizes.width)
    layers = tuple(_layer(config, tensors, ops, rope, eps, index) for index in range(config.num_layers))
    is_ours = config.mask_token is None
    return Block(
        config,
        ops,
        eps,
        target.embedding,
        ops.vector(_ones(sizes.width)),
        ops.pack(tensors["fc"]),
        ops.pack(tensors["mask_fc"]) if is_ours else None,
        _masks(config, tensors, target),
        ops.array(np.zeros((1, config.num_heads * config.head_width), np.float32)),
        ops.vector(tensors["context_norm"]),
        ops.vector(tensors["token_norm"]) if is_ours else None,
        layers,
        tuple(ops.layer(layer) for layer in layers),
        ops.vector(tensors["head_norm"]),
        ReducedHead.of(ops, tensors["head"], config.num_fixed)
        if config.has_head
        else ReducedHead(ops, target.output, None),
    )


def check_tensors(config: BlockConfig, tensors: Mapping[str, RawTensor], width: int) -> None:
    """Raise WeightsError for tensors that do not fit the config, for a target of that width."""
    gate = tensors.get("0.gate")
    check_shapes("block", tensors, config.shapes(width, gate.shape[0] if gate is not None else 0))


def _masks(config: BlockConfig, tensors: Mapping[str, RawTensor], target: Transformer) -> Array:
    """Return the masks, [num_masks, D]."""
    ops = target.ops
    if config.mask_token is None:
        return ops.array(dequantise(tensors["masks"]).astype(np.float32).reshape(tensors["masks"].shape))
    embedded = ops.embed(target.embedding, ops.plan([Segment([0], 0, [config.mask_token])], 1))
    return ops.select(embedded, [0] * config.num_masks)


def _layer(
    config: BlockConfig, tensors: Mapping[str, RawTensor], ops: Ops, rope: Rope, eps: float, index: int
) -> DecoderLayer:
    matrix = {name: ops.pack(tensors[f"{index}.{name}"]) for name in _PARTS if not name.endswith("norm")}
    return DecoderLayer(
        index=index,
        attn_norm=ops.vector(tensors[f"{index}.attn_norm"]),
        mlp_norm=ops.vector(tensors[f"{index}.mlp_norm"]),
        rope=rope,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_width=config.head_width,
        eps=eps,
        wq=matrix["wq"],
        wk=matrix["wk"],
        wv=matrix["wv"],
        wo=matrix["wo"],
        gate=matrix["gate"],
        up=matrix["up"],
        down=matrix["down"],
        q_norm=ops.vector(tensors[f"{index}.q_norm"]) if config.has_head_norms else None,
        k_norm=ops.vector(tensors[f"{index}.k_norm"]) if config.has_head_norms else None,
    )


def _ones(width: int) -> RawTensor:
    ones: NDArray[np.float32] = np.ones((1, width), "<f4")
    return RawTensor("ones", ones.view(np.uint8), "F32", (width,))
