"""The native ops: C++ kernels on packed weights, threads of its own, the same bits whatever the batch.

Importing this needs the compiled module `_native` (pip builds it; CMakeLists.txt says how during development). The
kernels are those of the best instruction set that the machine has; the environment variable OUTPACE_ISA ("baseline",
"avx2", "avx512") forces another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from outpace.errors import UsageError, WeightsError
from outpace.ops.formats import BLOCKS, dequantise, row_bytes
from outpace.ops.native import _native
from outpace.ops.native.cores import physical_cores
from outpace.ops.protocol import KV, Array, DecoderLayer, Plan, Rope, Vector, Weight
from outpace.types import KVSpec, RawTensor, Row, Segment

__all__ = ["NativeOps"]

Quantize = Literal["q8_0", "q4_0"]
_QUANTIZED: dict[str | None, str | None] = {None: None, "q8_0": "Q8_0", "q4_0": "Q4_0"}


class NativeOps:
    """The ops protocol in C++. All instances share one pool of threads; handles of one work with another.

    threads: None means the physical cores that the process may use. quantize: pack F32, F16 and BF16 matrices as
    Q8_0 or Q4_0 where their rows are multiples of 32.
    """

    name = "native"

    def __init__(self, threads: int | None = None, quantize: Quantize | None = None) -> None:
        if quantize not in _QUANTIZED:
            raise UsageError(f"quantize must be 'q8_0', 'q4_0' or None, got {quantize!r}")
        self.threads = physical_cores() if threads is None else threads
        self.isa: str = _native.isa()
        self._quantized = _QUANTIZED[quantize]
        self._context = _native.Context(self.threads)

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
        return self._context.pack(data, tensor.format, rows, width, self._packed_format(tensor))

    def _packed_format(self, tensor: RawTensor) -> str:
        floating = BLOCKS[tensor.format].size == 1
        if self._quantized is None or not floating or tensor.shape[1] % BLOCKS[self._quantized].size:
            return tensor.format
        return self._quantized

    def vector(self, tensor: RawTensor) -> Vector:
        if len(tensor.shape) != 1:
            raise WeightsError(f"tensor {tensor.name!r} must be a vector, its shape is {tensor.shape}")
        return _native.vector(np.ascontiguousarray(dequantise(tensor), np.float32))

    def rope(self, inv_freq: NDArray[np.float64], scale: float, context: int) -> Rope:
        return _native.rope(inv_freq.tolist(), scale, context)

    def layer(self, layer: DecoderLayer) -> Any:
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

    def concat(self, parts: Sequence[Array]) -> Array:
        return _native.concat(parts)

    def linear(self, x: Array, weight: Weight, bias: Vector | None = None) -> Array:
        return self._context.linear(x, weight, bias)

    def rope_store(self, q: Array, k: Array, v: Array, layer: Any, kv: KV, plan: Plan) -> Array:
        return self._context.rope_store(q, k, v, _handle(layer), kv, plan)

    def attend(self, q: Array, layer: Any, kv: KV, plan: Plan) -> Array:
        return self._context.attend(q, _handle(layer), kv, plan)

    def gated_mlp(self, x: Array, layer: Any) -> Array:
        return self._context.gated_mlp(x, _handle(layer))

    def decoder_layer(self, x: Array, layer: Any, kv: KV, plan: Plan) -> Array:
        return self._context.decoder_layer(x, layer, kv, plan)

    def logits(self, x: Array, norm: Vector, eps: float, weight: Weight, plan: Plan) -> Array:
        return self._context.logits(x, norm, eps, weight, plan)

    # -- choosing --------------------------------------------------------------------------------

    def sample(self, logits: Array, rows: Sequence[Row], k: int = 1) -> NDArray[np.int64]:
        tokens: NDArray[np.int64] = self._context.sample(logits, rows, k)
        return tokens

    def law(self, logits: Array, rows: Sequence[Row]) -> NDArray[np.float64]:
        law: NDArray[np.float64] = self._context.law(logits, rows)
        return law

    def logprobs(self, logits: Array, tokens: Sequence[int]) -> NDArray[np.float32]:
        values: NDArray[np.float32] = self._context.logprobs(logits, tokens)
        return values

    def top_k(self, logits: Array, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        best: tuple[NDArray[np.int64], NDArray[np.float32]] = self._context.top_k(logits, k)
        return best

    def numpy(self, x: Array) -> NDArray[np.float32]:
        values: NDArray[np.float32] = _native.numpy(x)
        return values

    def array(self, x: NDArray[np.float32]) -> Array:
        if x.dtype != np.float32 or x.ndim != 2:
            raise UsageError(f"an array must be float32 with two dimensions, got {x.dtype} {list(x.shape)}")
        return _native.array(np.ascontiguousarray(x))

    # -- measuring -------------------------------------------------------------------------------

    def read_bandwidth(self, num_bytes: int = 100_000_000, repeats: int = 20) -> list[float]:
        """Return the speeds, in GB/s, of `repeats` streaming reads of `num_bytes` by all threads together."""
        speeds: list[float] = self._context.read_bandwidth(num_bytes, repeats)
        return speeds


def _handle(layer: Any) -> Any:
    """Return a layer's handle; `compose_decoder_layer` gives the DecoderLayer itself."""
    return _native.layer(layer) if isinstance(layer, DecoderLayer) else layer
