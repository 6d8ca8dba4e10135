"""Matrices of 4- or 8-bit integers with scales and zeros by groups, and the bytes of our formats that they are.

A number is (code - zero) * scale. A matrix is [out, in]; a group is some columns of one row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from outpace.errors import WeightsError
from outpace.ops.formats import dequantise
from outpace.types import RawTensor

Codes = NDArray[np.uint8]
Zeros = Literal["plain", "less_one", "words_less_one"]
"""How GPTQ stores zeros: as they are (`gptq_v2`); each less 1 (auto-gptq's `gptq`); a 1 in every place of a word
subtracted from the word, so that a zero of 0 borrows from its neighbour (GPTQModel's `gptq`)."""
_BITS = (4, 8)
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where column i of eight lies among a word's nibbles
_ROWS = 512  # rows that are encoded at once


@dataclass(frozen=True, slots=True, eq=False)
class Integers:
    """A matrix of unsigned codes.

    codes(first, last): of some rows, [rows, in]. scales, zeros: [out, groups], float32 and int16. groups: of each
    column, or None where each has as many columns, one after the other.
    """

    name: str
    shape: tuple[int, int]
    bits: int
    codes: Callable[[int, int], Codes]
    scales: NDArray[np.float32]
    zeros: NDArray[np.int16]
    groups: NDArray[np.int64] | None = None

    @property
    def format(self) -> str:
        """The smallest of our formats that holds the numbers exactly."""
        width = self.shape[1] // self.scales.shape[1]
        halves = self.scales.astype(np.float16).astype(np.float32)
        if self.groups is not None or width % 32 or not np.array_equal(halves, self.scales):
            return "F32"
        middle = 1 << (self.bits - 1)
        if (self.zeros == middle).all():
            return {4: "Q4_0", 8: "Q8_0"}[self.bits]
        return "Q5_0" if self.bits == 4 else "F32"

    def encode(self) -> NDArray[np.uint8]:
        """Return the matrix in `format`, one row of bytes for each of its own."""
        format = self.format
        rows = range(0, self.shape[0], _ROWS)
        return np.concatenate([self._encode(format, first, min(first + _ROWS, self.shape[0])) for first in rows])

    def _encode(self, format: str, first: int, last: int) -> NDArray[np.uint8]:
        num_groups = self.scales.shape[1]
        codes = self.codes(first, last).astype(np.int16)
        of_column = np.arange(self.shape[1]) // (self.shape[1] // num_groups) if self.groups is None else self.groups
        numbers = codes - self.zeros[first:last][:, of_column]
        scales = self.scales[first:last][:, of_column]
        if format == "F32":
            return np.ascontiguousarray(numbers * scales, "<f4").view(np.uint8)
        d = np.ascontiguousarray(scales[:, ::32], "<f2").view(np.uint8).reshape(last - first, -1, 2)
        blocks = numbers.reshape(last - first, -1, 32)
        return np.concatenate([d, *_BLOCKS[format](blocks)], axis=2).reshape(last - first, -1)


def _q8_0(numbers: NDArray[np.int16]) -> list[NDArray[np.uint8]]:
    return [numbers.astype(np.int8).view(np.uint8)]


def _nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray((codes[..., :16] & 15) | (codes[..., 16:] << 4), np.uint8)


def _q4_0(numbers: NDArray[np.int16]) -> list[NDArray[np.uint8]]:
    return [_nibbles((numbers + 8).astype(np.uint8))]


def _q5_0(numbers: NDArray[np.int16]) -> list[NDArray[np.uint8]]:
    codes = (numbers + 16).astype(np.uint8)
    return [np.packbits(codes >> 4, axis=2, bitorder="little"), _nibbles(codes)]


_BLOCKS = {"Q8_0": _q8_0, "Q4_0": _q4_0, "Q5_0": _q5_0}


def packed_integers(
    weight_packed: RawTensor,
    weight_scale: RawTensor,
    weight_shape: RawTensor,
    weight_zero_point: RawTensor | None = None,
    weight_g_idx: RawTensor | None = None,
) -> Integers:
    """Return a matrix of compressed-tensors: rows of words, zeros in words along the rows or as signed bytes."""
    out, words = _matrix(weight_packed)
    stated = weight_shape.data.view("<i8").ravel().tolist() if weight_shape.format == "I64" else []
    bits = next((bits for bits in _BITS if stated == [out, words * 32 // bits]), None)
    if bits is None:
        fitting = " or ".join(f"{(out, words * 32 // bits)}" for bits in _BITS)
        raise _wrong(weight_shape, f"says {stated}, must be {fitting}, as {weight_packed.name} is")
    shape = (out, words * 32 // bits)
    scales = _scales(weight_scale, shape)
    zeros = np.full(scales.shape, 1 << (bits - 1), np.int16)
    if weight_zero_point is not None and weight_zero_point.format == "I8":
        zeros = zeros + _bytes(weight_zero_point, scales)
    elif weight_zero_point is not None:
        zeros = _unpack(np.ascontiguousarray(_words(weight_zero_point).T), bits).T[:out].astype(np.int16)
    order = _group_order(weight_g_idx, shape, scales)
    return _checked(weight_packed.name, shape, bits, _rows_of_words(weight_packed, bits), scales, zeros, order)


def plain_integers(
    weight: RawTensor,
    weight_scale: RawTensor,
    weight_zero_point: RawTensor | None = None,
    weight_g_idx: RawTensor | None = None,
) -> Integers:
    """Return a matrix of compressed-tensors that is signed bytes: codes are those plus 128."""
    if weight.format != "I8":
        raise _wrong(weight, f"is {weight.format}, must be I8, or F8_E4M3 without zeros and act-order")
    shape = _matrix(weight)
    scales = _scales(weight_scale, shape)
    zeros = np.full(scales.shape, 128, np.int16)

    def codes(first: int, last: int) -> Codes:
        return np.bitwise_xor(weight.data[first:last], np.uint8(0x80))

    if weight_zero_point is not None:
        zeros = zeros + _bytes(weight_zero_point, scales)
    return _checked(weight.name, shape, 8, codes, scales, zeros, _group_order(weight_g_idx, shape, scales))


def awq_integers(qweight: RawTensor, qzeros: RawTensor, scales: RawTensor) -> Integers:
    """Return a matrix of AWQ: [in, out / 8] words, whose nibbles are columns in an order of their own."""
    width, words = _matrix(qweight)
    shape, order = (words * 8, width), np.array(_AWQ_ORDER)

    def ordered(packed: NDArray[np.uint32]) -> Codes:
        nibbles = _unpack(packed, 4)
        return np.ascontiguousarray(nibbles.reshape(len(packed), -1, 8)[:, :, order].reshape(len(packed), -1))

    def codes(first: int, last: int) -> Codes:
        begin, end = first // 8, -(-last // 8)
        return ordered(np.ascontiguousarray(_words(qweight)[:, begin:end])).T[first - 8 * begin : last - 8 * begin]

    own = _transposed(scales, shape)
    return _checked(qweight.name, shape, 4, codes, own, ordered(_words(qzeros)).T.astype(np.int16), None)


def gptq_integers(
    bits: int | None, stored: Zeros, qweight: RawTensor, qzeros: RawTensor, scales: RawTensor, g_idx: RawTensor
) -> Integers:
    """Return a matrix of GPTQ: [in * bits / 32, out] words. bits: None for what the words and g_idx say."""
    words, out = _matrix(qweight)
    if bits is None:
        bits = next((bits for bits in _BITS if (words * 32 // bits,) == g_idx.shape), None)
    if bits is None:
        raise _wrong(qweight, f"has {words} rows for {g_idx.shape[0]} columns, which are neither of 4 nor of 8 bits")
    shape, width = (out, words * 32 // bits), bits

    def codes(first: int, last: int) -> Codes:
        return _unpack(np.ascontiguousarray(_words(qweight)[:, first:last].T), width)

    own, zeros = _transposed(scales, shape), _gptq_zeros(qzeros, bits, stored)
    return _checked(qweight.name, shape, bits, codes, own, zeros, _order(g_idx, shape))


def _gptq_zeros(qzeros: RawTensor, bits: int, stored: Zeros) -> NDArray[np.int16]:
    """Return zeros [out, groups]."""
    words = _words(qzeros)
    if stored == "words_less_one":
        words = words + np.uint32(0xFFFFFFFF // ((1 << bits) - 1))  # a 1 in each code; what runs over, carries
    zeros = _unpack(words, bits).T.astype(np.int16) + np.int16(stored == "less_one")
    if (zeros == 1 << bits).any():
        raise WeightsError(
            f"tensor {qzeros.name!r} has the zero {1 << bits}, which some readers take for that and some for 0: "
            "take a folder of version gptq_v2"
        )
    return zeros


def _checked(
    name: str,
    shape: tuple[int, int],
    bits: int,
    codes: Callable[[int, int], Codes],
    scales: NDArray[np.float32],
    zeros: NDArray[np.int16],
    groups: NDArray[np.int64] | None,
) -> Integers:
    """Return the matrix; raises WeightsError where its parts do not fit each other."""
    out, width = shape
    if len(scales) != out or scales.shape != zeros.shape or width % scales.shape[1]:
        raise WeightsError(f"tensor {name!r} of {shape} does not fit scales {scales.shape} and zeros {zeros.shape}")
    if groups is not None:
        if groups.min() < 0 or groups.max() >= scales.shape[1]:
            raise WeightsError(f"tensor {name!r}: a column's group must be in [0, {scales.shape[1]})")
        if np.array_equal(groups, np.arange(width) // (width // scales.shape[1])):
            groups = None
    return Integers(name, shape, bits, codes, scales, zeros, groups)


def _wrong(tensor: RawTensor, what: str) -> WeightsError:
    return WeightsError(f"tensor {tensor.name!r} {what}: the file is damaged, or of a kind that is not supported")


def _matrix(tensor: RawTensor) -> tuple[int, int]:
    if len(tensor.shape) != 2:
        raise _wrong(tensor, f"has shape {tensor.shape}, must be a matrix")
    return tensor.shape[0], tensor.shape[1]


def _words(tensor: RawTensor) -> NDArray[np.uint32]:
    if tensor.format != "I32":
        raise _wrong(tensor, f"is {tensor.format}, must be I32")
    return np.ascontiguousarray(tensor.data).view("<u4").reshape(_matrix(tensor))


def _unpack(words: NDArray[np.uint32], bits: int) -> Codes:
    """Return the codes of each row of words, the lowest bits first."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    mask = np.uint32((1 << bits) - 1)
    return ((words[:, :, None] >> shifts) & mask).astype(np.uint8).reshape(len(words), -1)


def _rows_of_words(tensor: RawTensor, bits: int) -> Callable[[int, int], Codes]:
    words = _words(tensor)
    return lambda first, last: _unpack(words[first:last], bits)


def _scales(tensor: RawTensor, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return scales [out, groups]: of the whole matrix, of each row, or of groups of each."""
    numbers = _floats(tensor)
    if numbers.size == 1:
        return np.broadcast_to(numbers.reshape(1, 1), (shape[0], 1))
    return numbers.reshape(len(numbers), -1)


def _transposed(tensor: RawTensor, shape: tuple[int, int]) -> NDArray[np.float32]:
    numbers = _floats(tensor)
    if numbers.ndim != 2 or numbers.shape[1] != shape[0]:
        raise _wrong(tensor, f"has shape {tensor.shape}, must have {shape[0]} columns")
    return np.ascontiguousarray(numbers.T)


def _floats(tensor: RawTensor) -> NDArray[np.float32]:
    if tensor.format not in ("F32", "F16", "BF16"):
        raise _wrong(tensor, f"is {tensor.format}, must be F32, F16 or BF16")
    return dequantise(tensor)


def _order(tensor: RawTensor | None, shape: tuple[int, int]) -> NDArray[np.int64] | None:
    """Return the group of each column."""
    if tensor is None:
        return None
    if tensor.format != "I32" or tensor.shape != (shape[1],):
        raise _wrong(tensor, f"is {tensor.format} {tensor.shape}, must be I32 of {shape[1]} numbers")
    return tensor.data.view("<i4").ravel().astype(np.int64)


def _group_order(
    tensor: RawTensor | None, shape: tuple[int, int], scales: NDArray[np.float32]
) -> NDArray[np.int64] | None:
    """Return the group of each column as compressed-tensors has it: -1 says that columns are in order.

    Its reader sorts columns by group and cuts them into equal parts, so all groups must be of one size.
    """
    groups = _order(tensor, shape)
    if tensor is None or groups is None or (groups == -1).any():
        return None
    sizes = np.bincount(groups, minlength=scales.shape[1]) if groups.min() >= 0 else groups
    if (sizes != shape[1] // scales.shape[1]).any():
        raise _wrong(tensor, f"must have {shape[1] // scales.shape[1]} columns of each of {scales.shape[1]} groups")
    return groups


def _bytes(zero: RawTensor, scales: NDArray[np.float32]) -> NDArray[np.int8]:
    if zero.format != "I8" or zero.data.size != scales.size:
        raise _wrong(zero, f"is {zero.format} {zero.shape}, must be I8 and as many as scales")
    return zero.data.view(np.int8).reshape(scales.shape)
