"""The network of the trained drafter `eagle` (EAGLE-3, arXiv:2503.01840): one decoder layer over the target's states.

    features of position i - 1   hidden states after the tapped layers of the target, each RMS-normalised: f [taps * D]
                                 g = last D of f + fc f          (from the second guess on: the network's own state)
    input of slot i              u = [norm(embedding of token i), norm(g)]                                  [2 D]
    layer                        q, k, v = products of u;  a = g + wo attend(q, k, v);  a = a + mlp(norm(a))
    guess of token i + 1         head norm(a), whose rows are the tokens that it knows

So slot i belongs to token i, as in the target's own cache, and what lies in it is a function of the tokens up to i.
Slot 0 stays empty, for no hidden state comes before the first token: the layer never looks at it.

Published networks differ in what `EagleConfig` names; `weights/published` says which layout has which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outpace.models.reduced_head import read_head, rows_of
from outpace.models.rope import rotary
from outpace.models.transformer import Transformer
from outpace.ops.layers import (
    KV,
    Array,
    DecoderLayer,
    Fusion,
    FusionParts,
    Guesser,
    Guesses,
    GuessLayer,
    HeadPart,
    HeadRows,
    Plan,
    TapRows,
    Vector,
    Weight,
)
from outpace.ops.protocol import Ops
from outpace.ops.sampling import SamplingBatch
from outpace.types import KVFormat, KVSpec, RawTensor
from outpace.weights.trained import DrafterTarget, Entries, check_shapes

_MATRICES = ("fc", "wq", "wk", "wv", "wo", "gate", "up", "down")
_NORMS = ("token_norm", "feature_norm", "mlp_norm", "head_norm")
TAP_NORMS = ("unit", "none", "each", "joint")


@dataclass(frozen=True, slots=True)
class EagleConfig:
    """What a checkpoint says beside its tensors.

    taps: layers of the target whose outputs it reads, 0 (the embedding) to the last one. num_fixed: rows of the head
    that are always looked at; those behind them only where their token is in the sequence. head_tokens: the token of
    each row of the head.

    The rest is for published networks. width: of the network's own states (None: the target's, as for eps and rope).
    tap_norm: an RMS norm over each tap, without weights ("unit") or with ("each"), over all taps together ("joint"),
    or "none". has_tap_residual: the last tap is added to fc's product. is_residual_normed: the layer's residual is
    norm(g), not g. is_output_normed: the next guess goes on from norm(a), not from a. has_biases: of wq, wk, wv, wo.
    has_head_norms: an RMS norm over each head of queries and keys. Without an embedding or a head it has the target's.
    """

    taps: tuple[int, ...]
    num_heads: int
    num_kv_heads: int
    head_width: int
    num_fixed: int
    head_tokens: tuple[int, ...]
    width: int | None = None
    eps: float | None = None
    inv_freq: tuple[float, ...] | None = None
    rope_scale: float = 1.0
    window: int | None = None
    tap_norm: str = "unit"
    has_tap_residual: bool = True
    is_residual_normed: bool = False
    is_output_normed: bool = False
    has_biases: bool = False
    has_head_norms: bool = False
    has_embedding: bool = False
    has_head: bool = True

    @classmethod
    def read(cls, entries: Entries, target: DrafterTarget) -> EagleConfig:
        """Return what a drafter's file says; raises WeightsError for what no network can be."""
        head_width = entries.count("head_width")
        inv_freq, rope_scale = rotary(entries, head_width)
        num_fixed, head_tokens = read_head(entries, target.vocab_size)
        config = cls(
            taps=entries.counts("taps") if "taps" in entries.raw else _usual_taps(entries, target.num_layers),
            num_heads=entries.count("num_heads"),
            num_kv_heads=entries.count("num_kv_heads"),
            head_width=head_width,
            num_fixed=num_fixed,
            head_tokens=head_tokens,
            width=entries.count("width") if "width" in entries.raw else None,
            eps=entries.number("eps") if "eps" in entries.raw else None,
            inv_freq=inv_freq,
            rope_scale=rope_scale,
            window=entries.count("window") if "window" in entries.raw else None,
            tap_norm=entries.choice("tap_norm", TAP_NORMS, "unit"),
            has_tap_residual=entries.flag("tap_residual", True),
            is_residual_normed=entries.flag("norm_before_residual", False),
            is_output_normed=entries.flag("norm_output", False),
            has_biases=entries.flag("biases", False),
            has_head_norms=entries.flag("head_norms", False),
            has_embedding=entries.flag("embedding", False),
            has_head=entries.flag("head", True),
        )
        config._check(entries, target)
        return config

    def _check(self, entries: Entries, target: DrafterTarget) -> None:
        taps = self.taps
        last = taps[-1] if taps and target.num_layers is None else target.num_layers or 0
        lowest = 1 if self.tap_norm == "unit" else 0
        if not taps or list(taps) != sorted(set(taps)) or not lowest <= taps[0] <= taps[-1] <= last:
            raise entries.error("taps", f"must be different layers in [{lowest}, {last}], in order, are {taps}")
        if self.num_kv_heads < 1 or self.num_heads < 1 or self.num_heads % self.num_kv_heads:
            raise entries.error("num_heads", f"must be a positive multiple of num_kv_heads, is {self.num_heads}")
        if self.width is not None and self.width != target.width and (self.has_tap_residual or not self.has_embedding):
            raise entries.error(
                "width",
                f"is {self.width} beside a target's of {target.width}: only for an own embedding and no residual",
            )

    def shapes(self, target_width: int, vocab_size: int, feed_forward_width: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor."""
        width = self.width or target_width
        queries, keys = self.num_heads * self.head_width, self.num_kv_heads * self.head_width
        read = len(self.taps) * target_width
        shapes: dict[str, tuple[int, ...]] = {
            **{"fc": (width, read), "wq": (queries, 2 * width)},
            **{"wk": (keys, 2 * width), "wv": (keys, 2 * width), "wo": (width, queries)},
            **{"gate": (feed_forward_width, width), "up": (feed_forward_width, width)},
            **{"down": (width, feed_forward_width)},
            **{norm: (width,) for norm in _NORMS},
        }
        if self.has_head:
            shapes["head"] = (len(self.head_tokens), width)
        if self.has_embedding:
            shapes["embedding"] = (vocab_size, width)
        if self.tap_norm == "each":
            shapes |= {f"tap_norm.{i}": (target_width,) for i in range(len(self.taps))}
        if self.tap_norm == "joint":
            shapes["tap_norm"] = (read,)
        if self.has_biases:
            shapes |= {"bq": (queries,), "bk": (keys,), "bv": (keys,), "bo": (width,)}
        if self.has_head_norms:
            shapes |= {"q_norm": (self.head_width,), "k_norm": (self.head_width,)}
        return shapes


def _usual_taps(entries: Entries, num_layers: int | None) -> tuple[int, ...]:
    """Return the low, middle and high layer that EAGLE-3 reads where nothing else is said (arXiv:2503.01840)."""
    if num_layers is None:
        raise entries.error("taps", "are not stated, and depend on how many layers the target has: give the target")
    taps = (2, num_layers // 2, num_layers - 3)
    if list(taps) != sorted(set(taps)):
        raise entries.error(
            "taps", f"are not stated, and the usual ones, {taps}, are no three layers of a target with {num_layers}"
        )
    return taps


@dataclass(frozen=True, slots=True, eq=False)
class Eagle:
    """The network, ready to run on the ops of its target, with the target's embedding and rotary frequencies.

    fusion, layer: what `fuse` and `guess` are made of. head: all of the head's rows, as stored; None: the target's.
    """

    config: EagleConfig
    ops: Ops
    fusion: FusionParts
    layer: GuessLayer
    head: RawTensor | None
    _fusion: Fusion
    _guesser: Guesser

    def spec(self, format: KVFormat, block_size: int) -> KVSpec:
        """Return the geometry of its keys and values."""
        return KVSpec(1, self.config.num_kv_heads, self.config.head_width, format, block_size)

    def fuse(self, parts: Sequence[TapRows]) -> Array:
        """Return the features of some positions, [T, D], from the target's hidden states there."""
        return self.ops.fuse(self._fusion, parts)

    def guess(
        self, features: Array, kv: KV, plan: Plan, further: Sequence[HeadRows | None], batch: SamplingBatch, k: int
    ) -> Guesses:
        """Write the plan's keys and values; return guesses behind its scored rows (see `Ops.guess`).

        features: of the position before each token, [T, D]: fused ones, or `Guesses.states`.
        """
        return self.ops.guess(features, self._guesser, kv, plan, further, batch, k)

    def pack_rows(self, rows: Sequence[int]) -> Weight:
        """Return some rows of the head as a matrix."""
        assert self.head is not None, "a target's head has no further rows"
        return self.ops.pack(rows_of(self.head, rows))


def check_tensors(config: EagleConfig, tensors: Mapping[str, RawTensor], width: int, vocab_size: int) -> None:
    """Raise WeightsError for tensors that do not fit the config, for a target of that width and vocabulary."""
    gate, embedding = tensors.get("gate"), tensors.get("embedding")
    rows = max(embedding.shape[0], vocab_size) if embedding is not None else 0
    check_shapes("eagle", tensors, config.shapes(width, rows, gate.shape[0] if gate is not None else 0))


def level_bytes(config: EagleConfig, tensors: Mapping[str, RawTensor]) -> tuple[int, int]:
    """Return how many bytes of weights the first level of a draft reads, and each further one.

    Without further rows of the head, and without the head where it is the target's.
    """
    num_bytes = {name: tensor.data.nbytes for name, tensor in tensors.items() if name != "embedding"}
    if "head" in num_bytes:
        num_bytes["head"] = num_bytes["head"] * config.num_fixed // len(config.head_tokens)
    first = sum(num_bytes.values())
    return first, first - sum(size for name, size in num_bytes.items() if name == "fc" or name.startswith("tap_norm"))


def build(config: EagleConfig, tensors: Mapping[str, RawTensor], target: Transformer) -> Eagle:
    """Return the network on the target's ops; raises WeightsError for tensors that do not fit the config."""
    ops, sizes = target.ops, target.config
    rope = target.rope_for(config.head_width, config.inv_freq, config.rope_scale)
    embedding = tensors.get("embedding")
    check_tensors(config, tensors, sizes.width, sizes.vocab_size)
    matrix = {name: ops.pack(tensors[name]) for name in _MATRICES}
    vector = {name: ops.vector(tensor) for name, tensor in tensors.items() if len(tensor.shape) == 1}
    eps = sizes.eps if config.eps is None else config.eps
    layer = DecoderLayer(
        index=0,
        attn_norm=vector["token_norm"],
        mlp_norm=vector["mlp_norm"],
        rope=rope,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_width=config.head_width,
        eps=eps,
        window=config.window,
        first=1,
        wq=matrix["wq"],
        wk=matrix["wk"],
        wv=matrix["wv"],
        wo=matrix["wo"],
        gate=matrix["gate"],
        up=matrix["up"],
        down=matrix["down"],
        bq=vector.get("bq"),
        bk=vector.get("bk"),
        bv=vector.get("bv"),
        q_norm=vector.get("q_norm"),
        k_norm=vector.get("k_norm"),
    )
    head = ops.pack(rows_of(tensors["head"], range(config.num_fixed))) if config.has_head else target.output
    norms = _tap_norms(config, vector, target)
    each, joint = ((), norms[0]) if config.tap_norm == "joint" else (norms, None)
    fusion = FusionParts(matrix["fc"], eps, config.has_tap_residual, each, joint)
    guesses = GuessLayer(
        layer,
        target.embedding if embedding is None else ops.pack(embedding),
        vector["feature_norm"],
        vector["head_norm"],
        HeadPart(head, config.head_tokens[: config.num_fixed]),
        config.is_residual_normed,
        config.is_output_normed,
        vector.get("bo"),
    )
    return Eagle(config, ops, fusion, guesses, tensors.get("head"), ops.fusion(fusion), ops.guesser(guesses))


def _tap_norms(config: EagleConfig, vector: Mapping[str, Vector], target: Transformer) -> tuple[Vector, ...]:
    if config.tap_norm == "unit":
        ones: NDArray[np.float32] = np.ones((1, target.config.width), "<f4")
        return (target.ops.vector(RawTensor("ones", ones.view(np.uint8), "F32", ones.shape[1:])),) * len(config.taps)
    names = {"each": [f"tap_norm.{i}" for i in range(len(config.taps))], "joint": ["tap_norm"], "none": []}
    return tuple(vector[name] for name in names[config.tap_norm])
