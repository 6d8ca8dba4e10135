"""The reference implementation of the ops protocol: every row by the same operations, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outpace.errors import UsageError, WeightsError
from outpace.ops.formats import dequantise
from outpace.ops.protocol import DecoderLayer, compose_decoder_layer
from outpace.ops.reference import choose
from outpace.ops.reference.attention import Plan, attend, make_plan
from outpace.ops.reference.product import multiply
from outpace.ops.reference.rope import RopeTable
from outpace.ops.reference.storage import Storage
from outpace.types import KVSpec, RawTensor, Row, Segment

Floats = NDArray[Any]


class ReferenceOps:
    """The ops protocol in NumPy. Weights are unpacked to `dtype`; keys and values are stored as their format says.

    float64 is for tests: it shows what rounding does. `threads` share out the matrix products, and change no bit.
    """

    name = "reference"

    def __init__(self, dtype: type[np.float32] | type[np.float64] = np.float32, threads: int = 1) -> None:
        if threads < 1:
            raise UsageError(f"threads must be at least 1, got {threads}")
        self.dtype = dtype
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, "outpace-reference") if threads > 1 else None

    # -- memory ----------------------------------------------------------------------------------

    def pack(self, tensor: RawTensor) -> Floats:
        if len(tensor.shape) != 2:
            raise WeightsError(f"tensor {tensor.name!r} must be a matrix, its shape is {tensor.shape}")
        return dequantise(tensor).astype(self.dtype, copy=False)

    def vector(self, tensor: RawTensor) -> Floats:
        if len(tensor.shape) != 1:
            raise WeightsError(f"tensor {tensor.name!r} must be a vector, its shape is {tensor.shape}")
        return dequantise(tensor).astype(self.dtype, copy=False)

    def rope(self, inv_freq: NDArray[np.float64], scale: float, context: int) -> RopeTable:
        return RopeTable(inv_freq, scale, context, self.dtype)

    def layer(self, layer: DecoderLayer) -> DecoderLayer:
        return layer

    def kv_alloc(self, spec: KVSpec, num_blocks: int) -> Storage:
        return Storage(spec, num_blocks)

    def kv_grow(self, kv: Storage, num_blocks: int) -> None:
        kv.grow(num_blocks)

    def kv_move(self, kv: Storage, sources: Sequence[int], targets: Sequence[int]) -> None:
        for source, target in zip(sources, targets, strict=True):
            kv.move(source, target)

    def plan(self, segments: Sequence[Segment], block_size: int) -> Plan:
        return make_plan(segments, block_size)

    # -- network ---------------------------------------------------------------------------------

    def embed(self, weight: Floats, plan: Plan) -> Floats:
        outside = plan.tokens[(plan.tokens < 0) | (plan.tokens >= len(weight))]
        if len(outside):
            raise UsageError(f"token id {outside[0]} is outside the model's vocabulary: allowed are [0, {len(weight)})")
        return np.asarray(weight[plan.tokens])

    def rms_norm(self, x: Floats, weight: Floats, eps: float) -> Floats:
        mean = np.sum(x * x, axis=-1, keepdims=True) / self.dtype(x.shape[-1])
        return np.asarray(x / np.sqrt(mean + self.dtype(eps)) * weight)

    def concat(self, parts: Sequence[Floats]) -> Floats:
        return np.asarray(np.concatenate(parts, axis=1))

    def linear(self, x: Floats, weight: Floats, bias: Floats | None = None) -> Floats:
        result = multiply(x, weight, self._pool, self.threads)
        return result if bias is None else result + bias

    def rope_store(self, q: Floats, k: Floats, v: Floats, layer: DecoderLayer, kv: Storage, plan: Plan) -> Floats:
        q, k, v = (x.reshape(len(x), -1, layer.head_width) for x in (q, k, v))
        if layer.q_norm is not None:
            q = self.rms_norm(q, layer.q_norm, layer.eps)
        if layer.k_norm is not None:
            k = self.rms_norm(k, layer.k_norm, layer.eps)
        kv.write(layer.index, plan.slots, layer.rope.rotate(k, plan.positions), v)
        rotated: Floats = layer.rope.rotate(q, plan.positions)
        return rotated.reshape(len(q), -1)

    def attend(self, q: Floats, layer: DecoderLayer, kv: Storage, plan: Plan) -> Floats:
        heads = q.reshape(len(q), layer.num_heads, layer.head_width)
        return attend(heads, layer.index, layer.window, kv, plan).reshape(q.shape)

    def gated_mlp(self, x: Floats, layer: DecoderLayer) -> Floats:
        gate, up = self.linear(x, layer.gate), self.linear(x, layer.up)
        with np.errstate(over="ignore"):  # exp(-gate) may be inf: gate / inf is the 0 that it should be
            return self.linear(gate / (1 + np.exp(-gate)) * up, layer.down)

    def decoder_layer(self, x: Floats, layer: DecoderLayer, kv: Storage, plan: Plan) -> Floats:
        return np.asarray(compose_decoder_layer(self, x, layer, kv, plan))

    def logits(self, x: Floats, norm: Floats, eps: float, weight: Floats, plan: Plan) -> Floats:
        scored = self.rms_norm(x[plan.scored], norm, eps)
        return self.linear(scored, weight).astype(np.float32)

    # -- choosing --------------------------------------------------------------------------------

    def sample(self, logits: Floats, rows: Sequence[Row], k: int = 1) -> NDArray[np.int64]:
        return choose.sample(logits, rows, k)

    def law(self, logits: Floats, rows: Sequence[Row]) -> NDArray[np.float64]:
        return choose.law(logits, rows)

    def logprobs(self, logits: Floats, tokens: Sequence[int]) -> NDArray[np.float32]:
        return choose.logprobs(logits, tokens)

    def top_k(self, logits: Floats, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        return choose.top_k(logits, k)

    def numpy(self, x: Floats) -> NDArray[np.float32]:
        return x.astype(np.float32)

    def array(self, x: NDArray[np.float32]) -> Floats:
        return x.astype(self.dtype)
