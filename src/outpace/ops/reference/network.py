"""The reference implementation of the ops protocol: every row by the same operations, one after another."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from outpace.errors import UsageError, WeightsError
from outpace.ops.compose import compose_best, compose_decoder_layer, compose_fuse, compose_states, compose_store
from outpace.ops.formats import dequantise
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
from outpace.ops.machine import check_threads, memory_bytes
from outpace.ops.reference import attention, experts, sample
from outpace.ops.reference.activation import activate
from outpace.ops.reference.product import multiply
from outpace.ops.reference.rope import RopeTable
from outpace.ops.reference.storage import Storage
from outpace.ops.sampling import SamplingBatch
from outpace.types import KVSpec, RawTensor, Segment

Floats = NDArray[Any]


class ReferenceOps:
    """The ops protocol in NumPy. Weights are unpacked to `dtype`; keys and values are stored as their format says.

    float64 is for tests: it shows what rounding does. `threads` share out the matrix products, and change no bit.
    """

    name = "reference"
    device = "cpu"
    isa = ""  # NumPy's own choice

    def __init__(self, dtype: type[np.float32] | type[np.float64] = np.float32, threads: int = 1) -> None:
        self.threads = check_threads(threads)
        self.memory_bytes = memory_bytes()
        self.dtype = dtype
        self._pool: ThreadPoolExecutor | None = None
        self._pool_owner = 0  # the process whose threads the pool has: a forked child has none of them
        self._workers()

    def synchronize(self) -> None:
        """Nothing to wait for: every call returns when it is done."""

    def clock(self) -> float:
        return time.thread_time() if self.threads == 1 else time.perf_counter()  # a caller of threads sleeps

    def read_bandwidth(self, num_bytes: int = 100_000_000, repeats: int = 20) -> list[float]:
        parts = np.array_split(np.ones(max(1, num_bytes // 8)), self.threads)
        pool, speeds = self._workers(), []
        for _ in range(repeats):
            started = time.perf_counter()
            list(pool.map(np.sum, parts) if pool else map(np.sum, parts))
            speeds.append(8 * sum(map(len, parts)) / (time.perf_counter() - started) / 1e9)
        return speeds

    def _workers(self) -> ThreadPoolExecutor | None:
        """Return the threads of this process (None: the caller's alone will do), which are started if need be."""
        if self.threads > 1 and self._pool_owner != os.getpid():
            self._pool, self._pool_owner = _started(self.threads), os.getpid()
        return self._pool

    # -- memory ----------------------------------------------------------------------------------

    def pack(self, tensor: RawTensor) -> Weight:
        if len(tensor.shape) != 2:
            raise WeightsError(f"tensor {tensor.name!r} must be a matrix, its shape is {tensor.shape}")
        return Weight(dequantise(tensor).astype(self.dtype, copy=False))

    def packed_bytes(self, tensor: RawTensor) -> int:
        return math.prod(tensor.shape) * np.dtype(self.dtype).itemsize

    def vector(self, tensor: RawTensor) -> Vector:
        if len(tensor.shape) != 1:
            raise WeightsError(f"tensor {tensor.name!r} must be a vector, its shape is {tensor.shape}")
        return Vector(dequantise(tensor).astype(self.dtype, copy=False))

    def rope(self, inv_freq: NDArray[np.float64], scale: float, context: int) -> Rope:
        return Rope(RopeTable(inv_freq, scale, context, self.dtype))

    def layer(self, layer: DecoderLayer) -> Layer:
        return Layer(layer)

    def kv_alloc(self, spec: KVSpec, num_blocks: int) -> KV:
        return KV(Storage(spec, num_blocks))

    def kv_grow(self, kv: KV, num_blocks: int) -> None:
        cast(Storage, kv).grow(num_blocks)

    def kv_move(self, kv: KV, sources: Sequence[int], targets: Sequence[int]) -> None:
        for source, target in zip(sources, targets, strict=True):
            cast(Storage, kv).move(source, target)

    def plan(self, segments: Sequence[Segment], block_size: int) -> Plan:
        return Plan(attention.make_plan(segments, block_size))

    # -- network ---------------------------------------------------------------------------------

    def embed(self, weight: Weight, plan: Plan) -> Array:
        rows, tokens = _floats(weight), cast(attention.Plan, plan).tokens
        outside = tokens[(tokens < 0) | (tokens >= len(rows))]
        if len(outside):
            raise UsageError(f"token id {outside[0]} is outside the model's vocabulary: allowed are [0, {len(rows)})")
        return Array(rows[tokens])

    def rms_norm(self, x: Array, weight: Vector, eps: float) -> Array:
        return Array(self._norm(_floats(x), _floats(weight), eps))

    def _norm(self, x: Floats, weight: Floats, eps: float) -> Floats:
        mean = np.sum(x * x, axis=-1, keepdims=True) / self.dtype(x.shape[-1])
        return np.asarray(x / np.sqrt(mean + self.dtype(eps)) * weight)

    def concat(self, parts: Sequence[Array]) -> Array:
        return Array(np.concatenate([_floats(part) for part in parts], axis=1))

    def add(self, a: Array, b: Array) -> Array:
        return Array(_floats(a) + _floats(b))

    def silu(self, x: Array) -> Array:
        numbers = _floats(x)
        return Array(activate(numbers, np.ones_like(numbers), "silu"))

    def scale(self, x: Array, factor: float) -> Array:
        return Array(_floats(x) * _floats(x).dtype.type(factor))

    def soft_cap(self, x: Array, cap: float) -> Array:
        numbers = _floats(x)
        bound = numbers.dtype.type(cap)
        return Array(bound * np.tanh(numbers / bound))

    def linear(self, x: Array, weight: Weight, bias: Vector | None = None) -> Array:
        result = self._product(_floats(x), weight)
        return Array(result if bias is None else result + _floats(bias))

    def _product(self, x: Floats, weight: Weight) -> Floats:
        return multiply(x, _floats(weight), self._workers(), self.threads)

    def rope_store(self, q: Array, k: Array, v: Array, layer: Layer, kv: KV, plan: Plan) -> Array:
        own, p, rope = _own(layer), cast(attention.Plan, plan), cast(RopeTable, _own(layer).rope)
        heads_q, heads_k, heads_v = (_floats(x).reshape(len(_floats(x)), -1, own.head_width) for x in (q, k, v))
        if own.q_norm is not None:
            heads_q = self._norm(heads_q, _floats(own.q_norm), own.eps)
        if own.k_norm is not None:
            heads_k = self._norm(heads_k, _floats(own.k_norm), own.eps)
        heads_q, heads_k = (rope.rotate(heads, p.positions) for heads in (heads_q, heads_k))
        if own.key_scale is not None:
            factors = _floats(own.key_scale).reshape(own.num_kv_heads, own.head_width)
            heads_k = heads_k / factors
            heads_q = heads_q * np.repeat(factors, own.num_heads // own.num_kv_heads, axis=0)
        if own.query_growth is not None:
            rate, length = own.query_growth
            growth = 1 + rate * np.log(1 + p.positions // length)
            heads_q = heads_q * growth.astype(self.dtype)[:, None, None]
        cast(Storage, kv).write(own.index, p.slots, heads_k, heads_v)
        return Array(heads_q.reshape(len(heads_q), -1))

    def attend(self, q: Array, layer: Layer, kv: KV, plan: Plan) -> Array:
        own, rows = _own(layer), _floats(q)
        heads = rows.reshape(len(rows), own.num_heads, own.head_width)
        storage, p = cast(Storage, kv), cast(attention.Plan, plan)
        scale = 1 / math.sqrt(own.head_width) if own.scale is None else own.scale
        sinks = None if own.sinks is None else _floats(own.sinks)
        result = attention.attend(heads, own.index, own.window, own.first, scale, storage, p, sinks)
        return Array(result.reshape(rows.shape))

    def gated_mlp(self, x: Array, layer: Layer) -> Array:
        own, rows = _own(layer), _floats(x)
        gate, up, down = own.mlp
        sides = self._product(rows, gate), self._product(rows, up)
        return Array(self._product(activate(*sides, own.activation), down))

    def experts(self, x: Array, layer: Layer) -> Array:
        own = _own(layer)
        assert own.experts is not None, "the layer has no experts"
        return Array(experts.run(_floats(x), own.experts, own.activation, self._product))

    def gate(self, gate: Array, up: Array, activation: Activation) -> Array:
        return Array(activate(_floats(gate), _floats(up), activation))

    def decoder_layers(self, x: Array, layers: Sequence[Layer], kv: KV, plan: Plan) -> Array:
        for layer in layers:
            x = compose_decoder_layer(self, x, _own(layer), layer, kv, plan)
        return x

    def logits(self, x: Array, norm: Vector, eps: float, weight: Weight, plan: Plan) -> Array:
        scored = _floats(x)[cast(attention.Plan, plan).scored]
        return Array(self._product(self._norm(scored, _floats(norm), eps), weight).astype(np.float32))

    def scored(self, x: Array, plan: Plan) -> Array:
        return Array(_floats(x)[cast(attention.Plan, plan).scored])

    # -- drafter networks ------------------------------------------------------------------------

    def fusion(self, parts: FusionParts) -> Fusion:
        return Fusion(parts)

    def guesser(self, layer: GuessLayer) -> Guesser:
        self.head_rows(layer.head)
        return Guesser(layer)

    def head_rows(self, part: HeadPart) -> HeadRows:
        if len(part.tokens) != len(_floats(part.weight)):
            raise UsageError(
                f"give a token for each of the {len(_floats(part.weight))} rows of a head, got {len(part.tokens)}"
            )
        return HeadRows(part)

    def fuse(self, fusion: Fusion, parts: Sequence[TapRows]) -> Array:
        return compose_fuse(self, cast(FusionParts, fusion), parts)

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
        layer, own = cast(GuessLayer, guesser), cast(attention.Plan, plan)
        queries = compose_store(self, features, layer, kv, plan)
        if not len(own.scored):
            return Guesses(self.scored(features, plan), [], [], [])
        states = compose_states(self, queries, features, layer, kv, plan)
        edges = np.searchsorted(own.scored, [span.first_row for span in own.spans]).tolist()
        counts = np.diff([*edges, len(own.scored)]).tolist()
        parts = [cast("HeadPart | None", rows) for rows in further]
        vocab_size = len(_floats(layer.embedding))
        best = compose_best(self, states, layer, parts, counts, vocab_size, batch, k)
        return Guesses(
            self.rms_norm(states, layer.head_norm, layer.layer.eps) if layer.output_is_normed else states, *best
        )

    def best_of_columns(
        self, logits: Array, columns: NDArray[np.int32], vocab_size: int, batch: SamplingBatch, k: int
    ) -> Best:
        return sample.best_of_columns(_floats(logits), columns, vocab_size, batch, k)

    # -- sampling --------------------------------------------------------------------------------

    def sample(self, logits: Array, batch: SamplingBatch, k: int = 1) -> NDArray[np.int64]:
        return sample.sample(_floats(logits), batch, k)

    def probs(self, logits: Array, batch: SamplingBatch) -> NDArray[np.float64]:
        return sample.probs(_floats(logits), batch)

    def logprobs(self, logits: Array, tokens: Sequence[int]) -> NDArray[np.float32]:
        return sample.logprobs(_floats(logits), tokens)

    def top_k(self, logits: Array, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        return sample.top_k(_floats(logits), k)

    # -- arrays ----------------------------------------------------------------------------------

    def stack(self, parts: Sequence[Array]) -> Array:
        if not parts:
            raise UsageError("stack needs at least one array")
        return Array(np.concatenate([_floats(part) for part in parts]))

    def select(self, x: Array, rows: Sequence[int]) -> Array:
        wrong = [row for row in rows if not 0 <= row < len(_floats(x))]
        if wrong:
            raise UsageError(f"a row must be in [0, {len(_floats(x)) - 1}], got {wrong[0]}")
        return Array(_floats(x)[np.asarray(rows, np.int64)])

    def numpy(self, x: Array) -> NDArray[np.float32]:
        return _floats(x).astype(np.float32)

    def array(self, x: NDArray[np.float32]) -> Array:
        return Array(x.astype(self.dtype))


def _floats(handle: Array | Weight | Vector) -> Floats:
    return cast(Floats, handle)


def _own(layer: Layer) -> DecoderLayer:
    return cast(DecoderLayer, layer)


def _started(threads: int) -> ThreadPoolExecutor:
    """Return a pool whose threads run already; raises UsageError where the system refuses to start them."""
    pool = ThreadPoolExecutor(threads, "outpace-reference")
    here = Barrier(threads)  # keeps each thread busy until all are there, so that the pool starts another for the next
    waits = []
    try:
        for _ in range(threads):
            waits.append(pool.submit(here.wait))
        for wait in waits:
            wait.result()
    except (RuntimeError, MemoryError) as error:
        here.abort()
        pool.shutdown()
        raise UsageError(
            f"{threads} threads cannot be started here, only {len(waits)} ({error}): give fewer threads, or raise the "
            "limit of processes (ulimit -u)"
        ) from error
    return pool
