"""What networks hand to ops and get from them: handles, and records of handles that make up a layer.

Handles are opaque: layouts belong to the ops implementation that made them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, NewType

# Handles. Each implementation has objects of its own behind them; a type checker keeps them apart.
Weight = NewType("Weight", object)  # a packed matrix [out, in]
Vector = NewType("Vector", object)  # a float vector (norm weight, bias)
Rope = NewType("Rope", object)  # rotary table
Layer = NewType("Layer", object)  # a decoder layer
KV = NewType("KV", object)  # storage of a whole paged cache, all layers
Plan = NewType("Plan", object)  # a ragged batch, ready for the kernels
Array = NewType("Array", object)  # rows of numbers: hidden states [T, D] or logits [R, V]
Fusion = NewType("Fusion", object)  # how hidden states become features
Guesser = NewType("Guesser", object)  # a guess layer
HeadRows = NewType("HeadRows", object)  # rows of a head, with their tokens

Activation = Literal["silu", "gelu_tanh", "clamped_swiglu"]


class QueryGrowth(NamedTuple):
    """How queries grow with their position, after rope: by 1 + rate * ln(1 + floor(position / length)).

    Attention over many tokens stays sharp by it (Llama 4, Ministral 3).
    """

    rate: float
    length: int  # positions without growth, at minimum 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """E gated MLPs of one layer, of which each row is run through those few that its router picks.

    A row's chosen experts are those with the largest router logits, ties to the lowest id. What they return is weighed
    with the softmax of their logits: over all experts, or (is_normalised) over the chosen ones alone, so that the
    weights add up to 1. Sums run over the chosen in descending order of their logits.
    """

    router: Weight  # [E, D]
    gate: tuple[Weight, ...]  # [F, D] each
    up: tuple[Weight, ...]  # [F, D] each
    down: tuple[Weight, ...]  # [D, F] each
    num_chosen: int
    is_normalised: bool
    router_bias: Vector | None = None  # [E]
    gate_bias: tuple[Vector, ...] = ()  # of all experts, or none
    up_bias: tuple[Vector, ...] = ()
    down_bias: tuple[Vector, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderLayer:
    """The weights and numbers of one decoder layer, as handles of one ops implementation.

    Heads: wq is [H * K, D], wk and wv are [G * K, D], wo is [D, H * K].
    Rotary pairs are (i, i + K/2) within a head ("rotate half", the Hugging Face order).
    How the parts follow each other: `compose_decoder_layer`. Parts that are None are left out.
    """

    index: int  # its layer in the KV storage
    wq: Weight
    wk: Weight
    wv: Weight
    wo: Weight
    rope: Rope
    num_heads: int
    num_kv_heads: int
    head_width: int
    eps: float  # of every RMS norm
    # Either one gated MLP (all three) or experts.
    gate: Weight | None = None  # [F, D]
    up: Weight | None = None  # [F, D]
    down: Weight | None = None  # [D, F]
    experts: Experts | None = None
    window: int | None = None  # a token sees itself and window - 1 earlier positions
    first: int = 0  # and none before this one: a token before it cannot be run
    scale: float | None = None  # of the products of queries and keys; None: 1 / sqrt(K)
    query_growth: QueryGrowth | None = None
    activation: Activation = "silu"
    attn_norm: Vector | None = None  # before attention
    mlp_norm: Vector | None = None  # before the MLP
    bq: Vector | None = None
    bk: Vector | None = None
    bv: Vector | None = None
    q_norm: Vector | None = None  # RMS norm over each head [K], before rope (qwen3)
    k_norm: Vector | None = None
    key_scale: Vector | None = None  # [G * K], powers of two: keys are stored divided by it, after rope
    bo: Vector | None = None
    sinks: Vector | None = None  # of each head [H]: a logit in the softmax of attention, without a value
    # What a fused layer does not have.
    gate_bias: Vector | None = None
    up_bias: Vector | None = None
    down_bias: Vector | None = None
    q_wide_norm: Vector | None = None  # RMS norm over all heads together [H * K], before rope
    k_wide_norm: Vector | None = None  # [G * K]
    attn_post_norm: Vector | None = None  # of what attention adds
    mlp_post_norm: Vector | None = None  # of what the MLP adds
    residual_scale: float = 1.0  # of what each of both adds

    @property
    def mlp(self) -> tuple[Weight, Weight, Weight]:
        """Gate, up and down of a layer that has one gated MLP."""
        assert self.gate is not None, "the layer has experts, and no MLP"
        assert self.up is not None, "a gated MLP has three matrices"
        assert self.down is not None, "a gated MLP has three matrices"
        return self.gate, self.up, self.down

    @property
    def is_plain(self) -> bool:
        """Whether an implementation's `decoder_layers` runs it: both norms before, none behind, no further parts."""
        biases = (self.gate_bias, self.up_bias, self.down_bias)
        norms = (self.q_wide_norm, self.k_wide_norm, self.attn_post_norm, self.mlp_post_norm)
        before = self.attn_norm is not None and self.mlp_norm is not None
        return before and all(part is None for part in (*biases, *norms)) and self.residual_scale == 1.0


@dataclass(frozen=True, slots=True, eq=False)
class HeadPart:
    """Some rows of a head, [rows, D], and the token of each: they know no other tokens."""

    weight: Weight
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GuessLayer:
    """A drafter network of one decoder layer that reads tokens and features, as handles of one ops implementation.

    layer: wq, wk and wv take a token's normed embedding (attn_norm) and the normed features (feature_norm) side by
    side; the features are its residual, as they are or (residual_is_normed) normed. What comes out of it is the next
    token's features, as it is or (output_is_normed) normed by head_norm; the head reads it normed. bo: of wo.
    """

    layer: DecoderLayer
    embedding: Weight
    feature_norm: Vector
    head_norm: Vector
    head: HeadPart
    residual_is_normed: bool = False
    output_is_normed: bool = False
    bo: Vector | None = None


@dataclass(frozen=True, slots=True)
class FusionParts:
    """How the target's hidden states become features: fc @ [tap, tap, ...] (+ the last tap).

    norms: RMS norms of the taps, [D] each, or joint_norm: one over all of them; neither: they are taken as they are.
    """

    fc: Weight  # [out, taps * D]
    eps: float
    adds_last: bool
    norms: tuple[Vector, ...] = ()
    joint_norm: Vector | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Guesses:
    """The k best tokens of S rows, best first; -1 and -inf where there are no more: lists of S rows of k.

    logprobs: log-softmax over the row's tokens after penalties, bias and temperature, before filters.
    scores: what puts them in this order, logit / temperature + noise. states: of the network behind each row, [S, D].
    """

    states: Array
    tokens: list[list[int]]
    logprobs: list[list[float]]
    scores: list[list[float]]


Best = tuple[list[list[int]], list[list[float]], list[list[float]]]  # tokens, logprobs, scores: see Guesses
TapRows = tuple[Sequence[Array], Sequence[int]]  # hidden states at each tap, [T, D]; the rows of them that are meant
