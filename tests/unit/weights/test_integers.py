"""Packed integers, number by number, by the rules that their makers state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from outpace.errors import WeightsError
from outpace.ops.formats import dequantise
from outpace.types import RawTensor
from outpace.weights.integers import Integers, Zeros, awq_integers, gptq_integers, packed_integers, plain_integers
from tests.tiny import raw_tensor

OUT, WIDTH, GROUP = 16, 128, 64
AWQ = [0, 2, 4, 6, 1, 3, 5, 7]  # nibble i of a word is column AWQ[i] of its eight

RNG = np.random.default_rng(0)
CODES = RNG.integers(0, 16, (OUT, WIDTH))
ZEROS = RNG.integers(1, 15, (OUT, WIDTH // GROUP))
SCALES = RNG.uniform(0.01, 0.1, ZEROS.shape).astype(np.float16).astype(np.float32)


def words(name: str, numbers: NDArray[Any]) -> RawTensor:
    """Return whole numbers below 2^32 as a tensor of 32-bit words."""
    content = np.ascontiguousarray(numbers, np.uint32).view(np.uint8).reshape(numbers.shape[0], -1)
    return RawTensor(name, content, "I32", numbers.shape)


def packed(codes: NDArray[Any], bits: int = 4) -> NDArray[Any]:
    """Return each row's codes, 32 / bits to a word, the first in its lowest bits."""
    per = 32 // bits
    rows = [[sum(int(row[i + k]) << bits * k for k in range(per)) for i in range(0, len(row), per)] for row in codes]
    return np.array(rows, np.uint64)


def expected(codes: NDArray[Any], zeros: NDArray[Any], scales: NDArray[Any], groups: NDArray[Any]) -> NDArray[Any]:
    rows = range(len(codes))
    return np.array(
        [[(codes[r, c] - zeros[r, g]) * scales[r, g] for c, g in enumerate(groups)] for r in rows], np.float32
    )


IN_ORDER = np.arange(WIDTH) // GROUP


def numbers(matrix: Integers, format: str) -> NDArray[Any]:
    assert matrix.format == format
    return dequantise(RawTensor("w", matrix.encode(), format, matrix.shape))


def test_awq_has_columns_in_an_order_of_its_own() -> None:
    def shuffled(table: NDArray[Any]) -> NDArray[Any]:  # [rows, out] -> words
        return packed(np.concatenate([table[:, i : i + 8][:, AWQ] for i in range(0, OUT, 8)], axis=1))

    matrix = awq_integers(
        words("q", shuffled(CODES.T)), words("z", shuffled(ZEROS.T)), raw_tensor("s", SCALES.T, "F16")
    )
    assert np.array_equal(numbers(matrix, "Q5_0"), expected(CODES, ZEROS, SCALES, IN_ORDER))


@pytest.mark.parametrize("stored", ["plain", "less_one", "words_less_one"])
@pytest.mark.parametrize("bits", [4, None])
def test_gptq_has_words_down_the_columns(stored: Zeros, bits: int | None) -> None:
    order = RawTensor("g", _ints(IN_ORDER), "I32", (WIDTH,))
    qweight, qzeros = words("q", packed(CODES).T), words("z", packed((ZEROS - (stored != "plain")).T))
    matrix = gptq_integers(bits, stored, qweight, qzeros, raw_tensor("s", SCALES.T, "F16"), order)
    assert np.array_equal(numbers(matrix, "Q5_0"), expected(CODES, ZEROS, SCALES, IN_ORDER))


def test_a_zero_of_0_less_one_borrows_from_its_neighbour_in_the_words_of_gptqmodel() -> None:
    zeros = ZEROS.copy()
    zeros[[0, 3, 7, 12]] = 0
    order = RawTensor("g", _ints(IN_ORDER), "I32", (WIDTH,))
    stored = (packed(zeros.T).astype(np.int64) - 0x11111111) % (1 << 32)
    given = words("q", packed(CODES).T), words("z", stored), raw_tensor("s", SCALES.T, "F16"), order
    matrix = gptq_integers(4, "words_less_one", *given)
    assert np.array_equal(numbers(matrix, "Q5_0"), expected(CODES, zeros, SCALES, IN_ORDER))
    with pytest.raises(WeightsError, match="some for 0"):
        gptq_integers(4, "less_one", *given)


def _ints(values: NDArray[Any]) -> NDArray[np.uint8]:
    return values.astype("<i4").view(np.uint8).reshape(1, -1)


def test_gptq_with_scattered_groups_becomes_float32() -> None:
    groups = np.random.default_rng(3).permutation(IN_ORDER)
    order = RawTensor("g", _ints(groups), "I32", (WIDTH,))
    qweight, qzeros = words("q", packed(CODES).T), words("z", packed(ZEROS.T))
    matrix = gptq_integers(4, "plain", qweight, qzeros, raw_tensor("s", SCALES.T, "F16"), order)
    assert np.array_equal(numbers(matrix, "F32"), expected(CODES, ZEROS, SCALES, groups))


def test_gptq_of_eight_bits() -> None:
    codes, zeros = RNG.integers(0, 256, (OUT, WIDTH)), np.full(ZEROS.shape, 128)
    order = RawTensor("g", _ints(IN_ORDER), "I32", (WIDTH,))
    qweight, qzeros = words("q", packed(codes, 8).T), words("z", packed((zeros - 1).T, 8))
    matrix = gptq_integers(8, "less_one", qweight, qzeros, raw_tensor("s", SCALES.T, "F16"), order)
    assert np.array_equal(numbers(matrix, "Q8_0"), expected(codes, zeros, SCALES, IN_ORDER))


def test_a_zero_that_readers_disagree_on_is_refused() -> None:
    order = RawTensor("g", _ints(IN_ORDER), "I32", (WIDTH,))
    qweight, qzeros = words("q", packed(CODES).T), words("z", packed(np.full_like(ZEROS, 15).T))
    with pytest.raises(WeightsError, match="some for 0"):
        gptq_integers(4, "less_one", qweight, qzeros, raw_tensor("s", SCALES.T, "F16"), order)


def shape_of(out: int, width: int) -> RawTensor:
    return RawTensor("shape", np.array([[out, width]], "<i8").view(np.uint8), "I64", (2,))


@pytest.mark.parametrize("bits", [4, 8])
def test_compressed_tensors_packs_rows(bits: int) -> None:
    codes = RNG.integers(0, 1 << bits, (OUT, WIDTH))
    zeros = np.full(ZEROS.shape, 1 << (bits - 1))
    matrix = packed_integers(words("p", packed(codes, bits)), raw_tensor("s", SCALES, "F16"), shape_of(OUT, WIDTH))
    assert np.array_equal(numbers(matrix, f"Q{bits}_0"), expected(codes, zeros, SCALES, IN_ORDER))


def test_compressed_tensors_packs_zeros_down_the_rows() -> None:
    zeros = words("z", packed(ZEROS.T).T)
    matrix = packed_integers(words("p", packed(CODES)), raw_tensor("s", SCALES, "F16"), shape_of(OUT, WIDTH), zeros)
    assert np.array_equal(numbers(matrix, "Q5_0"), expected(CODES, ZEROS, SCALES, IN_ORDER))


def test_zeros_of_compressed_tensors_may_be_signed_bytes() -> None:
    zeros = RawTensor("z", (ZEROS - 8).astype(np.int8).view(np.uint8), "I8", ZEROS.shape)
    matrix = packed_integers(words("p", packed(CODES)), raw_tensor("s", SCALES, "F16"), shape_of(OUT, WIDTH), zeros)
    assert np.array_equal(numbers(matrix, "Q5_0"), expected(CODES, ZEROS, SCALES, IN_ORDER))


def test_compressed_tensors_with_scattered_groups_become_float32() -> None:
    groups, eights = np.random.default_rng(3).permutation(IN_ORDER), np.full(ZEROS.shape, 8)
    given = words("p", packed(CODES)), raw_tensor("s", SCALES, "F16"), shape_of(OUT, WIDTH)
    order = RawTensor("g", _ints(groups), "I32", (WIDTH,))
    assert np.array_equal(
        numbers(packed_integers(*given, weight_g_idx=order), "F32"), expected(CODES, eights, SCALES, groups)
    )
    unset = RawTensor("g", _ints(np.full(WIDTH, -1)), "I32", (WIDTH,))
    assert np.array_equal(
        numbers(packed_integers(*given, weight_g_idx=unset), "Q4_0"), expected(CODES, eights, SCALES, IN_ORDER)
    )
    groups[np.flatnonzero(groups == 0)[0]] = 1
    with pytest.raises(WeightsError, match="must have 64 columns of each of 2 groups"):
        packed_integers(*given, weight_g_idx=RawTensor("g", _ints(groups), "I32", (WIDTH,)))


def test_bytes_with_a_scale_for_each_row() -> None:
    codes = RNG.integers(-128, 128, (OUT, WIDTH)).astype(np.int8)
    weight = RawTensor("w", codes.view(np.uint8), "I8", codes.shape)
    scales = SCALES[:, :1]
    plain = expected(codes.astype(int), np.zeros((OUT, 1), int), scales, np.zeros(WIDTH, int))
    assert np.array_equal(numbers(plain_integers(weight, raw_tensor("s", scales)), "Q8_0"), plain)
    zero = RawTensor("z", np.full((OUT, 1), 5, np.uint8), "I8", (OUT, 1))
    shifted = expected(codes.astype(int), np.full((OUT, 1), 5), scales, np.zeros(WIDTH, int))
    assert np.array_equal(numbers(plain_integers(weight, raw_tensor("s", scales), zero), "F32"), shifted)


def test_scales_that_no_half_holds_become_float32() -> None:
    scales = np.full_like(SCALES, 0.1)
    matrix = packed_integers(words("p", packed(CODES)), raw_tensor("s", scales), shape_of(OUT, WIDTH))
    assert np.array_equal(numbers(matrix, "F32"), expected(CODES, np.full(ZEROS.shape, 8), scales, IN_ORDER))


def test_many_rows_are_encoded_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = packed_integers(words("p", packed(CODES)), raw_tensor("s", SCALES), shape_of(OUT, WIDTH))
    whole = matrix.encode()
    monkeypatch.setattr("outpace.weights.integers._ROWS", 3)
    assert np.array_equal(matrix.encode(), whole)


def test_parts_that_do_not_fit_are_refused() -> None:
    codes, scales = words("p", packed(CODES)), raw_tensor("s", SCALES, "F16")
    with pytest.raises(WeightsError, match=r"'shape' says \[16, 32\], must be \(16, 128\) or \(16, 64\)"):
        packed_integers(codes, scales, shape_of(OUT, 32))
    with pytest.raises(WeightsError, match="does not fit scales"):
        packed_integers(codes, raw_tensor("s", SCALES[:8], "F16"), shape_of(OUT, WIDTH))
    with pytest.raises(WeightsError, match="must be I32"):
        packed_integers(raw_tensor("p", SCALES), scales, shape_of(OUT, 16))
    with pytest.raises(WeightsError, match="must be F32, F16 or BF16"):
        packed_integers(codes, words("s", ZEROS), shape_of(OUT, WIDTH))
    order = RawTensor("g", _ints(IN_ORDER + 1), "I32", (WIDTH,))
    qweight, qzeros, own = words("q", packed(CODES).T), words("z", packed(ZEROS.T)), raw_tensor("s", SCALES.T)
    with pytest.raises(WeightsError, match=r"must be in \[0, 2\)"):
        gptq_integers(4, "plain", qweight, qzeros, own, order)
    with pytest.raises(WeightsError, match="neither of 4 nor of 8 bits"):
        gptq_integers(None, "plain", qweight, qzeros, own, RawTensor("g", _ints(IN_ORDER[:96]), "I32", (96,)))
