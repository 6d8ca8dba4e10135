from __future__ import annotations

import numpy as np
import pytest
import torch

from outpace.errors import WeightsError
from outpace.ops.formats import dequantise
from outpace.types import RawTensor
from outpace.weights.scaled import E4M3, Floats8
from tests.tiny import raw_tensor


def weight(rows: int = 6, width: int = 8) -> RawTensor:
    codes = np.random.default_rng(0).integers(0, 256, (rows, width), dtype=np.uint8)
    codes[codes & 127 == 127] = 0  # no NaNs
    return RawTensor("w.weight", codes, "F8_E4M3", (rows, width))


def numbers(matrix: Floats8) -> np.ndarray:
    return dequantise(RawTensor("w", matrix.encode(), matrix.format, matrix.shape))


def test_the_numbers_of_bytes_are_those_of_pytorch() -> None:
    expected = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(E4M3, expected, equal_nan=True)


@pytest.mark.parametrize("shape", [(1,), (6, 1), (1, 1), (2, 4), (6, 2)])
def test_shares_of_a_matrix_have_scales_of_their_own(shape: tuple[int, ...]) -> None:
    scales = np.random.default_rng(1).uniform(0.01, 1, shape).astype(np.float32)
    found = numbers(Floats8(weight(), raw_tensor("w.weight_scale", scales)))
    table = scales.reshape(len(scales), -1)
    for row in range(6):
        for column in range(8):
            scale = table[row * len(table) // 6, column * table.shape[1] // 8]
            assert found[row, column] == E4M3[weight().data[row, column]] * scale


def test_blocks_may_be_cut_at_the_ends() -> None:
    scales = np.array([[1, 2], [3, 4]], np.float32)
    found = numbers(Floats8(weight(), raw_tensor("w.weight_scale_inv", scales), (4, 5)))
    own = E4M3[weight().data]
    assert np.array_equal(found[:4, :5], own[:4, :5])
    assert np.array_equal(found[:4, 5:], 2 * own[:4, 5:])
    assert np.array_equal(found[4:, :5], 3 * own[4:, :5])
    assert np.array_equal(found[4:, 5:], 4 * own[4:, 5:])


@pytest.mark.parametrize(("scale", "format"), [(0.25, "BF16"), (2.0, "BF16"), (0.3, "F32"), (2.0**-120, "F32")])
def test_powers_of_two_take_two_bytes_and_lose_nothing(scale: float, format: str) -> None:
    matrix = Floats8(weight(), raw_tensor("s", np.array([scale], np.float32)))
    assert matrix.format == format
    assert np.array_equal(numbers(matrix), E4M3[weight().data] * np.float32(scale))


def test_many_rows_are_converted_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    scale = raw_tensor("s", np.arange(1, 7, dtype=np.float32).reshape(6, 1))
    whole = Floats8(weight(), scale).encode()
    monkeypatch.setattr("outpace.weights.scaled._ROWS", 4)
    assert np.array_equal(Floats8(weight(), scale).encode(), whole)


def test_scales_that_do_not_fit_are_refused() -> None:
    with pytest.raises(WeightsError, match="does not divide"):
        Floats8(weight(), raw_tensor("s", np.ones((4, 1), np.float32)))
    with pytest.raises(WeightsError, match=r"must be \(2, 2\)"):
        Floats8(weight(), raw_tensor("s", np.ones((2, 1), np.float32)), (4, 5))
    with pytest.raises(WeightsError, match="must be a matrix of F8_E4M3"):
        Floats8(raw_tensor("w", np.ones((2, 2), np.float32)), raw_tensor("s", np.ones((1, 1), np.float32)))
    with pytest.raises(WeightsError, match="must be scales"):
        Floats8(weight(), RawTensor("s", np.ones((1, 4), np.uint8), "I32", (1,)))
