"""A network with an adapter: in some rows of a pass, y = W x + scale * B (A x) in place of y = W x (arXiv:2106.09685).

The packed weights W are the network's own, in memory once. A row in which the adapter is off is what the network alone
computes, bit for bit, whatever other rows do: so one pass refines a block and computes finished text beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from outpace.errors import WeightsError
from outpace.models.transformer import Block, Transformer
from outpace.ops.compose import added, mlp, normed
from outpace.ops.formats import dequantise
from outpace.ops.layers import KV, Array, DecoderLayer, Plan, Vector, Weight
from outpace.ops.protocol import Ops
from outpace.weights.adapter import AdapterCheckpoint

# A matrix's name in a file, its field in `DecoderLayer`.
_PLACES = {
    **{f"self_attn.{name}_proj": f"w{name}" for name in "qkvo"},
    **{f"mlp.{name}_proj": name for name in ("gate", "up", "down")},
}
_MLP = {"gate", "up", "down"}


@dataclass(frozen=True, slots=True)
class AdaptedRows:
    """Rows of a pass, ascending: on, in which the adapter is on; masked, that hold a mask."""

    on: Sequence[int]
    masked: Sequence[int]


@dataclass(frozen=True, slots=True)
class Change:
    """What an adapter adds to one matrix's product: B (A x)."""

    a: Weight  # [rank, in]
    b: Weight  # [out, rank]
    nothing: Array  # zeros [1, out]


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """An adapter on the ops of its network. layers: the changes of each layer, by the matrix's field.

    mask_embedding: what a mask is embedded as, [1, D]; None: as its token.
    """

    layers: tuple[dict[str, Change], ...]
    scale: float
    is_always_on: bool = False
    mask_embedding: Array | None = None

    def forward(
        self, model: Transformer, plan: Plan, kv: KV, taps: Sequence[int], rows: AdaptedRows, num_rows: int
    ) -> tuple[Array, dict[int, Array]]:
        """Return what `Transformer.forward` does, with the adapter on in some rows of the pass' `num_rows`."""
        ops = model.ops
        x = model.embed(plan)
        if self.mask_embedding is not None and rows.masked:
            x = ops.select(ops.stack([x, self.mask_embedding]), _replaced(range(num_rows), rows.masked, num_rows))
        some = None if len(rows.on) == num_rows else _Some(rows.on, num_rows)
        layers = [
            _Layer(block, changes, self.scale, some) for block, changes in zip(model.layers, self.layers, strict=True)
        ]
        return model.through(x, layers, plan, kv, taps)


class _Some:
    """Some rows of a pass: how to pick them, and how to put them back among rows of nothing."""

    def __init__(self, on: Sequence[int], num_rows: int) -> None:
        self.on = list(on)
        self.places = [len(self.on)] * num_rows
        for place, row in enumerate(self.on):
            self.places[row] = place


@dataclass(frozen=True, slots=True)
class _Layer:
    """A decoder layer with its changes, op by op as `compose_decoder_layer` has it."""

    block: Block
    changes: dict[str, Change]
    scale: float
    some: _Some | None
    num_layers = 1

    def forward(self, ops: Ops, x: Array, kv: KV, plan: Plan) -> Array:
        """Return x after the layer, [T, D]."""
        if not self.changes:
            return self.block.forward(ops, x, kv, plan)
        parts, handle = self.block.parts, self.block.handle
        h = normed(ops, x, parts.attn_norm, parts)
        q = normed(ops, self._product(ops, h, "wq", parts.bq), parts.q_wide_norm, parts)
        k = normed(ops, self._product(ops, h, "wk", parts.bk), parts.k_wide_norm, parts)
        v = self._product(ops, h, "wv", parts.bv)
        own = ops.attend(ops.rope_store(q, k, v, handle, kv, plan), handle, kv, plan)
        x = added(ops, x, self._product(ops, own, "wo", parts.bo), parts.attn_post_norm, parts)
        h = normed(ops, x, parts.mlp_norm, parts)
        change = self._mlp(ops, h) if self.changes.keys() & _MLP else mlp(ops, h, parts, handle)
        return added(ops, x, change, parts.mlp_post_norm, parts)

    def _mlp(self, ops: Ops, h: Array) -> Array:
        parts = self.block.parts
        gate, up = self._product(ops, h, "gate", parts.gate_bias), self._product(ops, h, "up", parts.up_bias)
        return self._product(ops, ops.gate(gate, up, parts.activation), "down", parts.down_bias)

    def _product(self, ops: Ops, x: Array, place: str, bias: Vector | None) -> Array:
        change, y = self.changes.get(place), ops.linear(x, getattr(self.block.parts, place), bias)
        if change is None:
            return y
        own = x if self.some is None else ops.select(x, self.some.on)
        more = ops.linear(ops.linear(own, change.a), change.b)
        if self.scale != 1.0:
            more = ops.scale(more, self.scale)
        if self.some is not None:
            more = ops.select(ops.stack([more, change.nothing]), self.some.places)
        return ops.add(y, more)


def _replaced(rows: range, masked: Sequence[int], by: int) -> list[int]:
    masks = set(masked)
    return [by if row in masks else row for row in rows]


def build(file: AdapterCheckpoint, model: Transformer) -> Adapter:
    """Return the adapter on the ops of its network; raises WeightsError for tensors that do not fit it."""
    ops, config = model.ops, model.config
    tensors = dict(file.tensors)
    embedding = tensors.pop("mask_embedding", None)
    mask = None
    if embedding is not None:
        if embedding.shape != (config.width,):
            raise WeightsError(f"{file.path}: mask_embedding must have shape {(config.width,)}, has {embedding.shape}")
        row = dequantise(embedding).astype(np.float32).reshape(1, -1)
        mask = ops.array(row * np.float32(config.embedding_scale))
    layers: list[dict[str, Change]] = []
    for index, block in enumerate(model.layers):
        changes = {}
        for name, place in _PLACES.items():
            if place in _MLP and block.parts.experts is not None:
                continue  # whose tensors then change nothing that the layer has
            a, b = (tensors.pop(f"model.layers.{index}.{name}.lora_{side}", None) for side in "ab")
            if a is None and b is None:
                continue
            if a is None or b is None:
                raise WeightsError(f"{file.path}: model.layers.{index}.{name} has one of lora_a and lora_b only")
            out, width = _shape(block.parts, place, model)
            if (a.shape, b.shape) != ((file.rank, width), (out, file.rank)):
                raise WeightsError(
                    f"{file.path}: model.layers.{index}.{name} must have lora_a {(file.rank, width)} and lora_b "
                    f"{(out, file.rank)}, has {a.shape} and {b.shape}"
                )
            changes[place] = Change(ops.pack(a), ops.pack(b), ops.array(np.zeros((1, out), np.float32)))
        layers.append(changes)
    if tensors:
        raise WeightsError(f"{file.path}: tensor {min(tensors)!r} changes nothing that this network has")
    return Adapter(tuple(layers), file.scale, file.is_always_on, mask)


def _shape(parts: DecoderLayer, place: str, model: Transformer) -> tuple[int, int]:
    """Return [out, in] of a layer's matrix."""
    width, feed_forward = model.config.width, model.config.feed_forward_width
    queries, keys = parts.num_heads * parts.head_width, parts.num_kv_heads * parts.head_width
    return {
        **{"wq": (queries, width), "wk": (keys, width), "wv": (keys, width), "wo": (width, queries)},
        **{"gate": (feed_forward, width), "up": (feed_forward, width), "down": (width, feed_forward)},
    }[place]
