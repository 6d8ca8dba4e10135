"""What the class does before the compiled module is asked: its options, and how matrices are packed."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from outpace.errors import UsageError, WeightsError
from outpace.ops.formats import BLOCKS, dequantise, row_bytes
from outpace.ops.machine import physical_cores
from outpace.types import NUMERIC_PARAMS, RawTensor, Segment
from tests.tiny import raw_tensor

pytest.importorskip("outpace.ops.native._native")
from outpace.ops import native
from outpace.ops.native import NativeOps, _native


def zeros(*shape: int) -> Any:
    return raw_tensor("w", np.zeros(shape, np.float32))


def weights(format: str, width: int) -> RawTensor:
    return raw_tensor("w", np.random.default_rng(0).standard_normal((16, width), np.float32), format)


def unpacked(ops: NativeOps, weight: Any) -> Any:
    """Return a packed matrix of 16 rows as the embedding lookup reads it."""
    return ops.numpy(ops.embed(weight, ops.plan([Segment((0,), 0, range(16))], 32)))


# -- options -----------------------------------------------------------------------------------------


def test_threads_are_the_physical_cores_unless_told() -> None:
    assert NativeOps().threads == physical_cores()
    assert NativeOps(threads=3).threads == 3


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_a_number_of_threads_out_of_range_is_refused(threads: int) -> None:
    with pytest.raises(UsageError, match="threads"):
        NativeOps(threads=threads)


def test_a_compiled_module_of_another_version_is_refused_at_import(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _native.sampling_params() == list(NUMERIC_PARAMS)
    monkeypatch.setattr(_native, "sampling_params", lambda: list(NUMERIC_PARAMS)[1:])
    spec = importlib.util.spec_from_file_location("outpace.ops.native", native.__file__)
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match="of another version than its Python files: build it again"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


# -- packing -----------------------------------------------------------------------------------------


def test_bytes_that_do_not_make_the_matrix_are_refused() -> None:
    ops, good = NativeOps(threads=1), zeros(4, 32)
    with pytest.raises(WeightsError, match="needs 4 rows of 128 bytes"):
        ops.pack(replace(good, data=good.data[:3]))
    with pytest.raises(WeightsError, match="matrix"):
        ops.pack(zeros(32))
    with pytest.raises(WeightsError, match="vector"):
        ops.vector(good)
    with pytest.raises(WeightsError, match="multiples of 32"):
        ops.pack(RawTensor("w", np.zeros((2, 17), np.uint8), "Q4_0", (2, 31)))


def test_a_tensor_need_not_lie_in_one_piece() -> None:
    ops, tensor = NativeOps(threads=1), weights("F32", 64)
    apart = np.zeros((32, 256), np.uint8)[::2]
    apart[:] = tensor.data
    assert unpacked(ops, ops.pack(replace(tensor, data=apart))).tobytes() == dequantise(tensor).tobytes()
    across = np.asfortranarray(dequantise(tensor))
    assert ops.numpy(ops.array(across)).tobytes() == dequantise(tensor).tobytes()


@pytest.mark.parametrize("shape", [(1, 256), (16, 512), (37, 768)])
@pytest.mark.parametrize("format", list(BLOCKS))
def test_what_a_matrix_takes_packed_is_known_before(format: str, shape: tuple[int, int]) -> None:
    rows, width = shape
    data = np.zeros((rows, row_bytes("w", format, width)), np.uint8)
    tensor, ops = RawTensor("w", data, format, shape), NativeOps(threads=1)
    assert ops.packed_bytes(tensor) == ops.pack(tensor).num_bytes  # type: ignore[attr-defined]
