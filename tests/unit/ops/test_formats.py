"""Dequantisation by hand, and damaged tensors; `tests/parity` compares all formats with the gguf package."""

import numpy as np
import pytest

from outpace.errors import WeightsError
from outpace.ops.formats import BLOCKS, dequantise, row_bytes
from outpace.types import RawTensor


def half(x: float) -> list[int]:
    return list(np.array([x], "<f2").tobytes())


def values(format: str, *row: list[int]) -> list[float]:
    """Return the numbers of a tensor of one row, given as runs of bytes."""
    data = np.frombuffer(b"".join(map(bytes, row)), np.uint8)[None]
    width = data.size // BLOCKS[format].bytes * BLOCKS[format].size
    found = dequantise(RawTensor("w", data, format, (width,)))
    assert found.dtype == np.float32
    return found.tolist()


def test_q8_0_is_a_scale_times_signed_bytes() -> None:
    assert values("Q8_0", half(0.5), [1, 255, 128, 127], [0] * 28) == [0.5, -0.5, -64, 63.5] + [0] * 28


def test_q4_0_has_its_first_half_in_the_low_nibbles() -> None:
    found = values("Q4_0", half(2.0), [0xF0, 0x8A], [0x88] * 14)
    assert found == [-16, 4] + [0] * 14 + [14, 0] + [0] * 14


def test_q4_1_adds_a_minimum() -> None:
    assert values("Q4_1", half(2.0), half(-1.0), [0x01], [0x00] * 15) == [1] + [-1] * 31


def test_q5_0_takes_its_fifth_bits_from_one_word() -> None:
    found = values("Q5_0", half(1.0), [0b10, 0, 0, 0x80], [0x00] * 16)
    assert found == [-16, 0] + [-16] * 29 + [0]


def test_q5_1_adds_a_minimum() -> None:
    found = values("Q5_1", half(1.0), half(0.25), [1, 0, 0, 0], [0x00] * 16)
    assert found == [16.25] + [0.25] * 31


def test_iq4_nl_looks_its_codes_up() -> None:
    assert values("IQ4_NL", half(0.5), [0xF0, 0x87], [0x88] * 14) == [-63.5, -5, *[0.5] * 14, 56.5, *[0.5] * 15]


def test_mxfp4_has_the_exponent_of_its_scale_first() -> None:
    found = values("MXFP4", [127], [0x10, 0xF7], [0] * 14)
    assert found == [0, 6] + [0] * 14 + [0.5, -6] + [0] * 14
    assert values("MXFP4", [0], [0x11] * 16) == [2.0**-128] * 32


def test_q3_k_takes_four_away_where_its_high_bit_is_not_set() -> None:
    scales = [0x11] * 8 + [0b10101010] * 4  # 1 + 32 each, less 32
    found = values("Q3_K", [0x01] + [0] * 31, [0b11] + [0] * 63, scales, half(2.0))
    assert found == [6] + [-8] * 255


def test_q2_k_takes_a_minimum_away() -> None:
    found = values("Q2_K", [0x21] * 16, [0b11] + [0] * 63, half(2.0), half(0.5))
    assert found == [5] + [-1] * 255


def test_bf16_is_the_upper_half_of_float32() -> None:
    assert values("BF16", [0x80, 0x3F, 0x00, 0xC0]) == [1, -2]


def test_rows_keep_their_order_and_shape() -> None:
    rows = np.arange(24, dtype="<f4").reshape(6, 4)
    tensor = RawTensor("w", rows.view(np.uint8), "F32", (2, 3, 4))
    assert dequantise(tensor).tolist() == rows.reshape(2, 3, 4).tolist()


def test_bytes_at_any_address_are_read() -> None:
    file = np.zeros(69, np.uint8)
    file[1:] = np.frombuffer(bytes(half(1.0) + [3] * 32) * 2, np.uint8)
    assert dequantise(RawTensor("w", file[1:].reshape(2, 34), "Q8_0", (2, 32))).tolist() == [[3.0] * 32] * 2


def test_a_result_is_its_own_memory() -> None:
    data = np.zeros((1, 8), np.uint8)
    found = dequantise(RawTensor("w", data, "F32", (2,)))
    data[:] = 255
    assert found.tolist() == [0, 0]


def test_an_unknown_format_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(WeightsError, match=r"'w'.*'IQ1_S'.*Q8_0"):
        row_bytes("w", "IQ1_S", 256)


def test_a_row_that_blocks_do_not_fill_is_refused() -> None:
    with pytest.raises(WeightsError, match=r"'w'.*100.*multiples of 32"):
        row_bytes("w", "Q8_0", 100)


@pytest.mark.parametrize("shape", [(1, 64), (3, 32), (64,)])
def test_bytes_that_do_not_fit_the_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(WeightsError, match="'w'"):
        dequantise(RawTensor("w", np.zeros((2, 34), np.uint8), "Q8_0", shape))
