"""The native ops: C++ kernels on packed weights, threads of its own, the same bits whatever the batch.

Importing this needs the compiled module `_native` (pip builds it; CMakeLists.txt says how during development). The
kernels are those of the best instruction set that the machine has; the environment variable OUTPACE_ISA ("baseline",
"avx2", "avx512") forces another.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outpace.errors import UsageError, WeightsError
from outpace.ops.formats import BLOCKS, dequantise, row_bytes
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
from outpace.ops.machine import check_threads, memory_bytes, physical_cores
from outpace.ops.native import _native
from outpace.ops.sampling import SamplingBatch
from outpace.types import NUMERIC_PARAMS, KVSpec, RawTensor, Segment
from outpace.types.mapped import mapped_file

__all__ = ["NativeOps", "read_strings"]

if _native.sampling_params() != list(NUMERIC_PARAMS):
    raise ImportError("outpace's compiled module is of another version than its Python files: build it again")

read_strings = _native.read_strings

_TILE = 16  # rows that are packed together
_COLUMN_BYTES = {
    "Q3_K": 112,
    "Q4_K": 148,
    "Q5_K": 180,
    "Q6_K": 212,
    "IQ4_XS": 140,
}  # of a block, where scales are wider


class NativeOps:
    """The ops protocol in C++. All instances share one pool of threads; handles of one work with another.

    threads: None means the physical cores that the process may use.
    """

    name = "native"
    device = "cpu"

    def __init__(self, threads: int | None = None) -> None:
        self.threads = physical_cores() if threads is None else check_threads(threads)
        self.isa: str = _native.isa()
        self.memory_bytes = memory_bytes()
        self._context = _native.Context(self.threads)

    def synchronize(self) -> None:
        """Wait for matrices of arrays that are read-only, which are packed meanwhile. What computes waits by itself."""
        _native.finish_packing()

    def clock(self) -> float:
        return time.thread_time()  # the caller works or spins all through a call, as long as it has a core

    def read_bandwidth(self, num_bytes: int = 100_000_000, repeats: int = 20) -> list[float]:
        return self._context.read_bandwidth(num_bytes, repeats)

    # -- memory ----------------------------------------------------------------------------------

    def pack(self, tensor: RawTensor) -> Weight:
        if len(tensor.shape) != 2:
            raise WeightsError(f"tensor {tensor.name!r} must be a matrix, its shape is {tensor.shape}")
        rows, width = tensor.shape
        expected = (rows, row_bytes(tensor.name, tensor.format, width))
        if tensor.data.shape != expected:
            raise WeightsError(
                f"tensor {tensor.name!r} of shape {tensor.shape} needs {expected[0]} rows of {expected[1]} bytes in "
                f"{tensor.format}, got {tensor.data.shape}: the file is damaged"
            )
        data = np.ascontiguousarray(tensor.data, np.uint8)
        stays, mapped = not data.flags.writeable, mapped_file(data) is not None
        return self._context.pack(data, tensor.format, rows, width, stays, mapped)

    @property
    def module(self) -> list[Any]:
        """What tells builds of the kernels apart: instruction set, and the compiled file."""
        found = os.stat(_native.__file__)
        return [self.isa, found.st_size, found.st_mtime_ns]

    def packed_file(self, path: os.PathLike[str]) -> _native.PackedFile:
        """Map a file; its `matrix` is one whose `tiles` lie there. Raises UsageError where that cannot be."""
        return _native.PackedFile(os.fspath(path))

    def tiles(self, weight: Weight) -> NDArray[np.uint8]:
        """Return the bytes of a packed matrix, not copied: what `packed_file` takes."""
        return _native.tiles_in_place(weight)

    def packed_bytes(self, tensor: RawTensor) -> int:
        rows, width, format = math.prod(tensor.shape[:-1]), tensor.shape[-1], tensor.format
        block = BLOCKS[format]
        column = width // block.size * _COLUMN_BYTES.get(format, block.bytes) + (2 if format == "BF16" else 0) * (
            width % 2
        )
        return -(-rows // _TILE) * -(-column * _TILE // 64) * 64

    def round(self, x: NDArray[np.float32], format: str) -> NDArray[np.uint8]:
        """Return a matrix as a file stores it in a quantised format, [rows, bytes per row]; rows must fit its blocks.

        Formats of 32 are rounded as the `gguf` package does, others by a search for scales with a small squared error.
        """
        return self._context.round(np.ascontiguousarray(x, np.float32), format)

    def vector(self, tensor: RawTensor) -> Vector:
        if len(tensor.shape) != 1:
            raise WeightsError(f"tensor {tensor.name!r} must be a vector, its shape is {tensor.shape}")
        return _native.vector(np.ascontiguousarray(dequantise(tensor), np.float32))

    def rope(self, inv_freq: NDArray[np.float64], scale: float, context: int) -> Rope:
        return _native.rope(inv_freq.tolist(), scale, context)

    def layer(self, layer: DecoderLayer) -> Layer:
        return _native.layer(layer)

    def kv_alloc(self, spec: KVSpec, num_blocks: int) -> KV:
        return _native.kv_alloc(
            spec.num_layers,
            spec.num_kv_heads,
            spec.head_width,
            spec.format,
            spec.block_size,
            spec.scale_group,
            num_blocks,
        )

    def kv_grow(self, kv: KV, num_blocks: int) -> None:
        _native.kv_grow(kv, num_blocks)

    def kv_move(self, kv: KV, sources: Sequence[int], targets: Sequence[int]) -> None:
        self._context.kv_move(kv, sources, targets)

    def plan(self, segments: Sequence[Segment], block_size: int) -> Plan:
        return _native.plan(segments, block_size)

    # -- network ---------------------------------------------------------------------------------

    def embed(self, weight: Weight, plan: Plan) -> Array:
        return self._context.embed(weight, plan)

    def rms_norm(self, x: Array, weight: Vector, eps: float) -> Array:
        return self._context.rms_norm(x, weight, eps)

    def scale(self, x: Array, factor: float) -> Array:
        return self._context.scale(x, factor)

    def soft_cap(self, x: Array, cap: float) -> Array:
        return self._context.soft_cap(x, cap)

    def concat(self, parts: Sequence[Array]) -> Array:
        return _native.concat(parts)

    def add(self, a: Array, b: Array) -> Array:
        return _native.add(a, b)

    def stack(self, parts: Sequence[Array]) -> Array:
        stacked: Array = _native.stack(parts)
        return stacked

    def silu(self, x: Array) -> Array:
        return _native.silu(x)

    def linear(self, x: Array, weight: Weight, bias: Vector | None = None) -> Array:
        return self._context.linear(x, weight, bias)

    def rope_store(self, q: Array, k: Array, v: Array, layer: Layer, kv: KV, plan: Plan) -> Array:
        return self._context.rope_store(q, k, v, layer, kv, plan)

    def attend(self, q: Array, layer: Layer, kv: KV, plan: Plan) -> Array:
        return self._context.attend(q, layer, kv, plan)

    def gated_mlp(self, x: Array, layer: Layer) -> Array:
        return self._context.gated_mlp(x, layer)

    def experts(self, x: Array, layer: Layer) -> Array:
        return self._context.experts(x, layer)

    def gate(self, gate: Array, up: Array, activation: Activation) -> Array:
        return self._context.gate(gate, up, activation)

    def decoder_layers(self, x: Array, layers: Sequence[Layer], kv: KV, plan: Plan) -> Array:
        return self._context.decoder_layers(x, layers, kv, plan)

    def logits(self, x: Array, norm: Vector, eps: float, weight: Weight, plan: Plan) -> Array:
        return self._context.logits(x, norm, eps, weight, plan)

    def scored(self, x: Array, plan: Plan) -> Array:
        return _native.scored(x, plan)

    # -- drafter networks ------------------------------------------------------------------------

    def fusion(self, parts: FusionParts) -> Fusion:
        return _native.fusion(parts.fc, parts.norms, parts.joint_norm, parts.eps, parts.adds_last)

    def guesser(self, layer: GuessLayer) -> Guesser:
        return _native.guesser(layer, self.head_rows(layer.head))

    def head_rows(self, part: HeadPart) -> HeadRows:
        return _native.head_rows(part.weight, part.tokens)

    def fuse(self, fusion: Fusion, parts: Sequence[TapRows]) -> Array:
        return self._context.fuse(fusion, parts)

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
        return Guesses(*self._context.guess(features, guesser, kv, plan, further, _checked(batch), k))

    def best_of_columns(
        self, logits: Array, columns: NDArray[np.int32], vocab_size: int, batch: SamplingBatch, k: int
    ) -> Best:
        return self._context.best_of_columns(logits, columns, vocab_size, _checked(batch), k)

    # -- sampling --------------------------------------------------------------------------------

    def sample(self, logits: Array, batch: SamplingBatch, k: int = 1) -> NDArray[np.int64]:
        return self._context.sample(logits, _checked(batch), k)

    def probs(self, logits: Array, batch: SamplingBatch) -> NDArray[np.float64]:
        return self._context.probs(logits, _checked(batch))

    def logprobs(self, logits: Array, tokens: Sequence[int]) -> NDArray[np.float32]:
        return self._context.logprobs(logits, tokens)

    def top_k(self, logits: Array, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        return self._context.top_k(logits, k)

    # -- arrays ----------------------------------------------------------------------------------

    def select(self, x: Array, rows: Sequence[int]) -> Array:
        return _native.select(x, rows)

    def numpy(self, x: Array) -> NDArray[np.float32]:
        return _native.numpy(x)

    def array(self, x: NDArray[np.float32]) -> Array:
        if x.dtype != np.float32 or x.ndim != 2:
            raise UsageError(f"an array must be float32 with two dimensions, got {x.dtype} {list(x.shape)}")
        return _native.array(np.ascontiguousarray(x))


_arrays = attrgetter(*(field.name for field in fields(SamplingBatch) if field.name != "num_rows"))


def _checked(batch: SamplingBatch) -> _native.SamplingBatch:
    """Return the batch as C++ reads it, its arrays checked."""
    if batch.params is None:
        return _native.SamplingBatch(batch.num_rows)
    return _native.SamplingBatch(batch.num_rows, *_arrays(batch))
