"""The ops protocol: the only place with arithmetic on big arrays.

Implementations: `reference` (NumPy, the specification), `native` (C++). Layouts belong to them: what `pack`, `vector`,
`rope`, `layer`, `kv_alloc` and `plan` return is opaque to everybody else, and so are hidden states ([T, D]) and logits
([R, V]); `numpy` reads them, `select` picks rows.

The contract (docs/decisions/0003), tested in `tests/contracts/test_ops.py` for every implementation: each row of every
result is computed with the same operations in the same order whatever else is in the call. So a token's logits are
bitwise the same alone or in a batch, in prefill or decode, in any block placement, with a cached prefix or without, as
a chain or as a path of a tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, NewType, Protocol

import numpy as np
from numpy.typing import NDArray

from outpace.ops.sampling import SamplingBatch
from outpace.types import KVSpec, RawTensor, Segment

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
        """Whether an implementation's `decoder_layer` runs it: both norms before, none behind, no further parts."""
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
TapRows = tuple[
    Sequence[Array], Sequence[int]
]  # hidden states at each tap, [T, D], and the rows of them that are meant


class Ops(Protocol):
    """What a network, the cache and the sampler need from an array library.

    device: where the arithmetic is done, such as "cpu". isa: its instruction set, "" where that is nobody's choice.
    memory_bytes: of the device, what a KV cache may be sized by. threads: of the arithmetic.
    """

    @property
    def name(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def isa(self) -> str: ...
    @property
    def memory_bytes(self) -> int: ...
    @property
    def threads(self) -> int: ...

    def synchronize(self) -> None:
        """Wait until everything asked for is computed: call it before reading a clock."""

    def clock(self) -> float:
        """Return seconds by which the cost of calls is compared: work, not waiting for a core that others have.

        By the thread that calls the ops, and only differences between its own readings.
        """

    def read_bandwidth(self, num_bytes: int = 100_000_000, repeats: int = 20) -> list[float]:
        """Return the speeds, in GB/s, of `repeats` streaming reads of `num_bytes` by all threads together."""

    # -- memory ----------------------------------------------------------------------------------

    def pack(self, tensor: RawTensor) -> Weight:
        """Return a matrix [out, in] ready for `linear`, `embed` and `logits`.

        Raises WeightsError for a format, or a shape of that format, that this implementation lacks.
        """

    def packed_bytes(self, tensor: RawTensor) -> int:
        """Return how many bytes `pack` would take for a matrix, or a stack of them: by shape and format alone."""

    def vector(self, tensor: RawTensor) -> Vector:
        """Return a float vector: a norm weight or a bias."""

    def rope(self, inv_freq: NDArray[np.float64], scale: float, context: int) -> Rope:
        """Return the rotary table of positions [0, context).

        The angle of pair i at position t is t * inv_freq[i] (float64, rounded to the working precision
        after cos / sin); cos and sin are multiplied by `scale` (YaRN's attention factor, else 1). A pair of frequency
        0 does not turn, nor is it scaled.
        """

    def layer(self, layer: DecoderLayer) -> Layer:
        """Return the layer ready to run (an implementation may fuse weights here)."""

    def kv_alloc(self, spec: KVSpec, num_blocks: int) -> KV:
        """Return storage for `num_blocks` blocks of keys and values of all layers."""

    def kv_grow(self, kv: KV, num_blocks: int) -> None:
        """Grow the storage to `num_blocks` blocks; what is stored stays."""

    def kv_move(self, kv: KV, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy physical slots in all layers, in the order given (slot = block * block_size + offset)."""

    def plan(self, segments: Sequence[Segment], block_size: int) -> Plan:
        """Return the batch of all segments, flat, with everything that the kernels need to know of it."""

    # -- network ---------------------------------------------------------------------------------

    def embed(self, weight: Weight, plan: Plan) -> Array:
        """Return the embedding rows of the plan's tokens, [T, D]."""

    def rms_norm(self, x: Array, weight: Vector, eps: float) -> Array:
        """Return x / sqrt(mean(x^2) + eps) * weight, over the last dimension."""

    def add(self, a: Array, b: Array) -> Array:
        """Return a + b, [T, D]."""

    def silu(self, x: Array) -> Array:
        """Return x * sigmoid(x), number by number."""

    def scale(self, x: Array, factor: float) -> Array:
        """Return x * factor, rounded to the working precision before."""

    def soft_cap(self, x: Array, cap: float) -> Array:
        """Return cap * tanh(x / cap)."""

    def linear(self, x: Array, weight: Weight, bias: Vector | None = None) -> Array:
        """Return x @ weight.T + bias, [T, out]."""

    def concat(self, parts: Sequence[Array]) -> Array:
        """Return arrays of T rows side by side, [T, D1 + D2 + ...]: what a drafter network reads of several layers.

        Raises ValueError for no array, or for arrays of different numbers of rows.
        """

    def rope_store(self, q: Array, k: Array, v: Array, layer: Layer, kv: KV, plan: Plan) -> Array:
        """Rotate q and k by the plan's positions, write k and v into their slots; return the rotated q.

        q: [T, H * K]; k, v: [T, G * K]. Applies the layer's q_norm and k_norm first, if it has them. With a
        key_scale s, k / s is stored, and the q of each head that reads it is multiplied by s. With a query_growth,
        each q is multiplied by what it is at its position (float64, rounded to the working precision).
        """

    def attend(self, q: Array, layer: Layer, kv: KV, plan: Plan) -> Array:
        """Return softmax(q k^T * scale) v over what each token sees, and the layer's sinks, [T, H * K].

        Sums run over logical positions in ascending order, in chunks cut at fixed positions.
        """

    def gated_mlp(self, x: Array, layer: Layer) -> Array:
        """Return down(activation(gate(x)) * up(x)), [T, D], of a layer without biases there."""

    def experts(self, x: Array, layer: Layer) -> Array:
        """Return the weighted sum of what each row's chosen experts make of it, [T, D]: see `Experts`.

        Each of them returns down(activation(gate(x) + gate_bias) * (up(x) + up_bias)) + down_bias.
        """

    def gate(self, gate: Array, up: Array, activation: Activation) -> Array:
        """Return activation(gate) * up, [T, F].

        silu(x) = x / (1 + exp(-x)); gelu_tanh(x) = x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2.
        clamped_swiglu has clamps on both sides: g / (1 + exp(-1.702 g)) (u + 1) with g = min(gate, 7) and u = up in
        [-7, 7].
        """

    def decoder_layer(self, x: Array, layer: Layer, kv: KV, plan: Plan) -> Array:
        """Return x after one plain layer; bitwise equal to `compose_decoder_layer` (ops/compose.py) on the same ops."""

    def logits(self, x: Array, norm: Vector, eps: float, weight: Weight, plan: Plan) -> Array:
        """Return the final norm and output product of the plan's scored rows, [R, V] float32."""

    def scored(self, x: Array, plan: Plan) -> Array:
        """Return the plan's scored rows of x, [R, D]."""

    # -- drafter networks ------------------------------------------------------------------------

    def fusion(self, parts: FusionParts) -> Fusion:
        """Return the fusion ready to run."""

    def guesser(self, layer: GuessLayer) -> Guesser:
        """Return the layer ready to run."""

    def head_rows(self, part: HeadPart) -> HeadRows:
        """Return rows of a head ready to run. Raises UsageError where rows and tokens are not equally many."""

    def fuse(self, fusion: Fusion, parts: Sequence[TapRows]) -> Array:
        """Return the features of some rows of hidden states, part after part; bitwise equal to `compose_fuse`."""

    def guess(
        self,
        features: Array,
        guesser: Guesser,
        kv: KV,
        plan: Plan,
        further: Sequence[HeadRows | None],
        batch: SamplingBatch,
        k: int,
    ) -> Guesses:
        """Write the keys and values of all the plan's tokens; guess behind the scored ones, [S, k].

        features: of the position before each token, [T, D]. further: for each segment, rows of the head that only it
        looks at beside the layer's. batch: of the scored rows; the tokens are those of `best_of_columns`.
        Bitwise equal to `compose_store`, `compose_states` and `compose_best` on the same ops. Raises UsageError for
        a token outside the embedding.
        """

    def best_of_columns(
        self, logits: Array, columns: NDArray[np.int32], vocab_size: int, batch: SamplingBatch, k: int
    ) -> Best:
        """Return what `sample` makes of logits of some tokens, [R, C], all others being impossible.

        columns: the token of each column, [R, C]; -1 behind a row's last one. A row that cannot be sampled has no
        token: nothing is raised.
        """

    # -- sampling --------------------------------------------------------------------------------

    def sample(self, logits: Array, batch: SamplingBatch, k: int = 1) -> NDArray[np.int64]:
        """Return each row's token, [R, k]: the k best of log p + g in order, for k > 1.

        The distribution is that of `SamplingParams` (its order of steps is part of the contract). Noise:
        `outpace.ops.philox`, added in float32: score = float32(l) + float32(g), where l is the processed logit divided
        by temperature. Greedy rows add no noise. Ties go to the lowest id.

        Raises SamplingError that names all rows which have no token: nothing is allowed, a logit is NaN or +inf,
        or their bias or history names a token outside the vocabulary. The other rows can be sampled by `select`.
        """

    def probs(self, logits: Array, batch: SamplingBatch) -> NDArray[np.float64]:
        """Return the distribution that `sample` draws from, [R, V]; one-hot for greedy rows. Raises as `sample`."""

    def logprobs(self, logits: Array, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return the raw log-softmax of one token per row, [R]. Raises SamplingError as `sample` does."""

    def top_k(self, logits: Array, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the k most likely tokens of each row and their raw log-softmax, both [R, k]. Raises as `sample`."""

    # -- arrays ----------------------------------------------------------------------------------

    def stack(self, parts: Sequence[Array]) -> Array:
        """Return arrays of D columns one below another, [T1 + T2 + ..., D].

        Raises ValueError for no array, or for arrays of different numbers of columns.
        """

    def select(self, x: Array, rows: Sequence[int]) -> Array:
        """Return some rows of an array, in the order given (a row may come twice)."""

    def numpy(self, x: Array) -> NDArray[np.float32]:
        """Return hidden states or logits as a NumPy array of their own."""

    def array(self, x: NDArray[np.float32]) -> Array:
        """Return a NumPy array as this implementation's array (the inverse of `numpy`)."""
