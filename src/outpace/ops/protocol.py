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
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from outpace.ops.layers import (
    KV,
    Activation,
    Array,
    Best,
    DecoderLayer,
    Fusion,
    FusionParts,
    Guesser,
    Guesses,
    GuessLayer,
    HeadPart,
    HeadRows,
    Layer,
    Plan,
    Rope,
    TapRows,
    Vector,
    Weight,
)
from outpace.ops.sampling import SamplingBatch
from outpace.types import KVSpec, RawTensor, Segment


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

    def decoder_layers(self, x: Array, layers: Sequence[Layer], kv: KV, plan: Plan) -> Array:
        """Return x after plain layers, at least one, one after another.

        Bitwise equal to `compose_decoder_layer` (ops/compose.py) of each on the same ops.
        """

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
