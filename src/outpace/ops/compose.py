"""What the layers are made of, op by op: how any implementation may run them, and what a fused one must equal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from outpace.ops.layers import (
    KV,
    Array,
    Best,
    DecoderLayer,
    FusionParts,
    GuessLayer,
    HeadPart,
    Layer,
    Plan,
    TapRows,
    Vector,
)
from outpace.ops.protocol import Ops
from outpace.ops.sampling import SamplingBatch


def compose_decoder_layer(ops: Ops, x: Array, layer: DecoderLayer, handle: Layer, kv: KV, plan: Plan) -> Array:
    """Return x after one layer: how all networks run one, and what fused `decoder_layers` must equal, bit for bit."""
    x = added(
        ops,
        x,
        _attended(ops, normed(ops, x, layer.attn_norm, layer), layer, handle, kv, plan),
        layer.attn_post_norm,
        layer,
    )
    return added(ops, x, mlp(ops, normed(ops, x, layer.mlp_norm, layer), layer, handle), layer.mlp_post_norm, layer)


def _attended(ops: Ops, h: Array, layer: DecoderLayer, handle: Layer, kv: KV, plan: Plan) -> Array:
    q = normed(ops, ops.linear(h, layer.wq, layer.bq), layer.q_wide_norm, layer)
    k = normed(ops, ops.linear(h, layer.wk, layer.bk), layer.k_wide_norm, layer)
    v = ops.linear(h, layer.wv, layer.bv)
    q = ops.rope_store(q, k, v, handle, kv, plan)
    return ops.linear(ops.attend(q, handle, kv, plan), layer.wo, layer.bo)


def mlp(ops: Ops, h: Array, layer: DecoderLayer, handle: Layer) -> Array:
    """Return what a layer's MLP makes of its normed input, [T, D]."""
    if layer.experts is not None:
        return ops.experts(h, handle)
    if layer.gate_bias is None and layer.up_bias is None and layer.down_bias is None:
        return ops.gated_mlp(h, handle)
    gate, up, down = layer.mlp
    sides = ops.linear(h, gate, layer.gate_bias), ops.linear(h, up, layer.up_bias)
    return ops.linear(ops.gate(*sides, layer.activation), down, layer.down_bias)


def normed(ops: Ops, x: Array, norm: Vector | None, layer: DecoderLayer) -> Array:
    """Return x after a norm of the layer, where it has that one."""
    return x if norm is None else ops.rms_norm(x, norm, layer.eps)


def added(ops: Ops, x: Array, change: Array, norm: Vector | None, layer: DecoderLayer) -> Array:
    """Return the residual x and what a part of the layer adds to it, normed and scaled as the layer has it."""
    change = normed(ops, change, norm, layer)
    return ops.add(x, change if layer.residual_scale == 1.0 else ops.scale(change, layer.residual_scale))


def compose_fuse(ops: Ops, fusion: FusionParts, parts: Sequence[TapRows]) -> Array:
    """Return the features of some rows of hidden states: the specification of `fuse`."""
    picked = [[ops.select(tap, rows) for tap in taps] for taps, rows in parts]
    taps = [ops.stack(rows) for rows in zip(*picked, strict=True)]
    if fusion.norms:
        taps = [ops.rms_norm(tap, norm, fusion.eps) for tap, norm in zip(taps, fusion.norms, strict=True)]
    read = ops.concat(taps)
    if fusion.joint_norm is not None:
        read = ops.rms_norm(read, fusion.joint_norm, fusion.eps)
    features = ops.linear(read, fusion.fc)
    return ops.add(taps[-1], features) if fusion.adds_last else features


def compose_store(ops: Ops, features: Array, layer: GuessLayer, kv: KV, plan: Plan) -> Array:
    """Write the keys and values of all tokens; return their queries, [T, H * K]: the first third of `guess`."""
    own = layer.layer
    assert own.attn_norm is not None, "a guess layer norms its token"
    tokens = ops.rms_norm(ops.embed(layer.embedding, plan), own.attn_norm, own.eps)
    u = ops.concat([tokens, ops.rms_norm(features, layer.feature_norm, own.eps)])
    products = ((own.wq, own.bq), (own.wk, own.bk), (own.wv, own.bv))
    q, k, v = (ops.linear(u, weight, bias) for weight, bias in products)
    return ops.rope_store(q, k, v, ops.layer(own), kv, plan)


def compose_states(ops: Ops, queries: Array, features: Array, layer: GuessLayer, kv: KV, plan: Plan) -> Array:
    """Return what comes out of the layer at the scored rows, [S, D], their keys and values stored: the second third."""
    own = layer.layer
    assert own.mlp_norm is not None, "a guess layer norms what its MLP reads"
    handle = ops.layer(own)
    residual = ops.scored(features, plan)
    if layer.residual_is_normed:
        residual = ops.rms_norm(residual, layer.feature_norm, own.eps)
    attended = ops.scored(ops.attend(queries, handle, kv, plan), plan)
    x = ops.add(residual, ops.linear(attended, own.wo, layer.bo))
    return ops.add(x, ops.gated_mlp(ops.rms_norm(x, own.mlp_norm, own.eps), handle))


def compose_best(
    ops: Ops,
    states: Array,
    layer: GuessLayer,
    further: Sequence[HeadPart | None],
    num_scored: Sequence[int],
    vocab_size: int,
    batch: SamplingBatch,
    k: int,
) -> Best:
    """Return the best tokens behind the layer's output; num_scored: rows of each segment. The last third of `guess`.

    Its `states` are the layer's output, or (output_is_normed) what head_norm makes of it.
    """
    normed = ops.rms_norm(states, layer.head_norm, layer.layer.eps)
    fixed = ops.numpy(ops.linear(normed, layer.head.weight))
    more = max((len(part.tokens) for part in further if part is not None), default=0)
    logits = np.pad(fixed, ((0, 0), (0, more)))
    columns = np.full(logits.shape, -1, np.int32)
    columns[:, : fixed.shape[1]] = layer.head.tokens
    first = 0
    for part, count in zip(further, num_scored, strict=True):
        if part is not None and count:
            own = ops.numpy(ops.linear(ops.select(normed, range(first, first + count)), part.weight))
            end = fixed.shape[1] + len(part.tokens)
            logits[first : first + count, fixed.shape[1] : end] = own
            columns[first : first + count, fixed.shape[1] : end] = part.tokens
        first += count
    return ops.best_of_columns(ops.array(logits), columns, vocab_size, batch, k)
