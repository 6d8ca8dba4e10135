"""The network of the trained drafter `eagle` (EAGLE-3, arXiv:2503.01840): one decoder layer over the target's states.

    features of position i - 1   hidden states after the tapped layers of the target, each RMS-normalised: f [taps * D]
                                 g = last D of f + fc f          (from the second guess on: the network's own state)
    input of slot i              u = [norm(embedding of token i), norm(g)]                                  [2 D]
    layer                        q, k, v = products of u;  a = g + wo attend(q, k, v);  a = a + mlp(norm(a))
    guess of token i + 1         head norm(a), whose rows are the tokens that it knows

So slot i belongs to token i, as in the target's own cache, and what lies in it is a function of the tokens up to i.
Slot 0 stays empty, for no hidden state comes before the first token: the layer never looks at it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outpace.errors import WeightsError
from outpace.models.trained import DrafterTarget, Entries, check_shapes
from outpace.models.transformer import Transformer
from outpace.ops.protocol import KV, Array, DecoderLayer, Layer, Ops, Plan, Vector, Weight
from outpace.types import KVFormat, KVSpec, RawTensor

_MATRICES = ("fc", "wq", "wk", "wv", "wo", "gate", "up", "down", "head")
_NORMS = ("token_norm", "feature_norm", "mlp_norm", "head_norm")


@dataclass(frozen=True, slots=True)
class EagleConfig:
    """What a checkpoint says beside its tensors.

    taps: layers of the target, 1 to the last one, whose outputs it reads; the last is the residual's. num_fixed: rows
    of the head that are always looked at; those behind them only where their token is in the sequence.
    head_tokens: the token of each row of the head.
    """

    taps: tuple[int, ...]
    num_heads: int
    num_kv_heads: int
    head_width: int
    num_fixed: int
    head_tokens: tuple[int, ...]

    @classmethod
    def read(cls, entries: Entries, target: DrafterTarget) -> EagleConfig:
        """Return what a drafter's file says; raises WeightsError for what no network can be."""
        config = cls(
            taps=entries.counts("taps"),
            num_heads=entries.count("num_heads"),
            num_kv_heads=entries.count("num_kv_heads"),
            head_width=entries.count("head_width"),
            num_fixed=entries.count("num_fixed"),
            head_tokens=entries.counts("head_tokens"),
        )
        tokens, taps, last = config.head_tokens, config.taps, target.num_layers
        if not tokens or len(set(tokens)) < len(tokens) or max(tokens) >= target.vocab_size:
            raise entries.error("head_tokens", f"must be different ids in [0, {target.vocab_size})")
        if not 1 <= config.num_fixed <= len(tokens):
            raise entries.error("num_fixed", f"must be in [1, {len(tokens)}], is {config.num_fixed}")
        if not taps or list(taps) != sorted(set(taps)) or not 1 <= taps[0] <= taps[-1] <= last:
            raise entries.error("taps", f"must be different layers in [1, {last}], in order, are {taps}")
        if config.num_kv_heads < 1 or config.num_heads < 1 or config.num_heads % config.num_kv_heads:
            raise entries.error("num_heads", f"must be a positive multiple of num_kv_heads, is {config.num_heads}")
        return config

    def shapes(self, width: int, feed_forward_width: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor for a target of that width."""
        queries, keys = self.num_heads * self.head_width, self.num_kv_heads * self.head_width
        return {
            **{"fc": (width, len(self.taps) * width), "wq": (queries, 2 * width)},
            **{"wk": (keys, 2 * width), "wv": (keys, 2 * width), "wo": (width, queries)},
            **{"gate": (feed_forward_width, width), "up": (feed_forward_width, width)},
            **{"down": (width, feed_forward_width), "head": (len(self.head_tokens), width)},
            **{norm: (width,) for norm in _NORMS},
        }


@dataclass(frozen=True, slots=True, eq=False)
class Eagle:
    """The network, ready to run on the ops of its target, with the target's embedding and rotary frequencies."""

    config: EagleConfig
    ops: Ops
    eps: float
    embedding: Weight
    ones: Vector
    fc: Weight
    token_norm: Vector
    feature_norm: Vector
    layer: DecoderLayer
    handle: Layer
    head_norm: Vector
    head: Weight  # the fixed rows
    head_rows: RawTensor  # all of them, as stored

    def spec(self, format: KVFormat, block_size: int) -> KVSpec:
        """Return the geometry of its keys and values."""
        return KVSpec(1, self.config.num_kv_heads, self.config.head_width, format, block_size)

    def fuse(self, taps: Sequence[Array]) -> Array:
        """Return the features of T positions, [T, D], from the target's hidden states there, a [T, D] for each tap."""
        normed = [self.ops.rms_norm(tap, self.ones, self.eps) for tap in taps]
        return self.ops.add(normed[-1], self.ops.linear(self.ops.concat(normed), self.fc))

    def store(self, plan: Plan, features: Array, kv: KV) -> Array:
        """Write the keys and values of the plan's tokens; return their queries, [T, H * K].

        features: of the position before each token, [T, D].
        """
        ops, layer = self.ops, self.layer
        tokens = ops.rms_norm(ops.embed(self.embedding, plan), self.token_norm, self.eps)
        u = ops.concat([tokens, ops.rms_norm(features, self.feature_norm, self.eps)])
        q, k, v = (ops.linear(u, weight) for weight in (layer.wq, layer.wk, layer.wv))
        return ops.rope_store(q, k, v, self.handle, kv, plan)

    def states(self, plan: Plan, queries: Array, features: Array, kv: KV) -> Array:
        """Return the layer's output for tokens whose keys and values are stored, [T, D]: their guesses' features."""
        ops = self.ops
        x = ops.add(features, ops.linear(ops.attend(queries, self.handle, kv, plan), self.layer.wo))
        return ops.add(x, ops.gated_mlp(ops.rms_norm(x, self.layer.mlp_norm, self.eps), self.handle))

    def logits(self, plan: Plan, states: Array) -> Array:
        """Return the logits of the head's fixed rows, [scored rows, num_fixed]."""
        return self.ops.logits(states, self.head_norm, self.eps, self.head, plan)

    def more_logits(self, states: Array, rows: Weight) -> Array:
        """Return the logits of further rows of the head, [T, rows]; `pack_rows` makes the matrix."""
        return self.ops.linear(self.ops.rms_norm(states, self.head_norm, self.eps), rows)

    def pack_rows(self, rows: Sequence[int]) -> Weight:
        """Return some rows of the head as a matrix."""
        whole = self.head_rows
        data = np.ascontiguousarray(whole.data[list(rows)])
        return self.ops.pack(RawTensor(whole.name, data, whole.format, (len(rows), whole.shape[1])))


def build(config: EagleConfig, tensors: Mapping[str, RawTensor], target: Transformer) -> Eagle:
    """Return the network on the target's ops; raises WeightsError for tensors that do not fit the config."""
    ops, sizes = target.ops, target.config
    width = sizes.width
    if config.head_width != sizes.head_width:
        raise WeightsError(f"the drafter's heads are {config.head_width} wide, the target's {sizes.head_width}")
    gate = tensors.get("gate")
    check_shapes("eagle", tensors, config.shapes(width, gate.shape[0] if gate is not None else 0))
    matrix = {name: ops.pack(tensors[name]) for name in _MATRICES if name != "head"}
    norm = {name: ops.vector(tensors[name]) for name in _NORMS}
    layer = DecoderLayer(
        index=0,
        attn_norm=norm["token_norm"],
        mlp_norm=norm["mlp_norm"],
        rope=ops.rope(np.array(sizes.inv_freq, np.float64), sizes.rope_scale, sizes.context),
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_width=config.head_width,
        eps=sizes.eps,
        first=1,
        wq=matrix["wq"],
        wk=matrix["wk"],
        wv=matrix["wv"],
        wo=matrix["wo"],
        gate=matrix["gate"],
        up=matrix["up"],
        down=matrix["down"],
    )
    head = tensors["head"]
    fixed = RawTensor(head.name, head.data[: config.num_fixed], head.format, (config.num_fixed, width))
    return Eagle(
        config,
        ops,
        sizes.eps,
        target.embedding,
        ops.vector(_ones(width)),
        matrix["fc"],
        norm["token_norm"],
        norm["feature_norm"],
        layer,
        ops.layer(layer),
        norm["head_norm"],
        ops.pack(fixed),
        head,
    )


def _ones(width: int) -> RawTensor:
    ones: NDArray[np.float32] = np.ones((1, width), "<f4")
    return RawTensor("ones", ones.view(np.uint8), "F32", (width,))
