"""Matrices of 8-bit floats (E4M3) with scales: of the whole matrix, of rows, of blocks, of groups of columns."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from outpace.errors import WeightsError
from outpace.ops.formats import dequantise
from outpace.types import RawTensor

_ROWS = 512  # rows that are converted at once


def _e4m3() -> NDArray[np.float32]:
    """Return the number of each byte: sign, 4 bits of exponent (less 7), 3 of mantissa; no infinities."""
    numbers = []
    for byte in range(256):
        exponent, mantissa = byte >> 3 & 15, byte & 7
        size = math.ldexp(8 + mantissa, exponent - 10) if exponent else math.ldexp(mantissa, -9)
        numbers.append(math.nan if byte & 127 == 127 else -size if byte & 128 else size)
    return np.array(numbers, np.float32)


E4M3 = _e4m3()


class Floats8:
    """A matrix [out, in] of E4M3 numbers times scales, rounded to float32 where a product has more digits."""

    def __init__(self, weight: RawTensor, scale: RawTensor, block: tuple[int, int] | None = None) -> None:
        """`block`: rows and columns that share a scale, the last of either possibly fewer; None: equal shares."""
        if weight.format != "F8_E4M3" or len(weight.shape) != 2:
            raise WeightsError(f"tensor {weight.name!r} is {weight.format} {weight.shape}, must be a matrix of F8_E4M3")
        if scale.format not in ("F32", "F16", "BF16") or len(scale.shape) > 2:
            raise WeightsError(
                f"tensor {scale.name!r} is {scale.format} {scale.shape}, must be scales of {weight.name}"
            )
        self.shape = weight.shape[0], weight.shape[1]
        self._weight = weight
        scales = dequantise(scale)
        self._scales = scales.reshape(len(scales), -1)
        self._block = self._shares(scale) if block is None or scales.size == 1 else block
        fitting = tuple(-(-n // b) for n, b in zip(self.shape, self._block, strict=True))
        if self._scales.shape != fitting:
            raise WeightsError(
                f"tensor {scale.name!r} has shape {scale.shape}, must be {fitting}: blocks of {self._block}"
            )

    def _shares(self, scale: RawTensor) -> tuple[int, int]:
        (out, width), (rows, columns) = self.shape, self._scales.shape
        if out % rows or width % columns:
            raise WeightsError(f"tensor {scale.name!r} has shape {scale.shape}, which does not divide {self.shape}")
        return out // rows, width // columns

    @property
    def format(self) -> str:
        """BF16 where scales are powers of two of usual size, which change no digit; else F32."""
        mantissa, exponent = np.frexp(self._scales)
        return "BF16" if ((mantissa == 0.5) & (np.abs(exponent) < 100)).all() else "F32"

    def encode(self) -> NDArray[np.uint8]:
        """Return the matrix in `format`, one row of bytes for each of its own."""
        rows, columns = self._block
        parts = []
        for first in range(0, self.shape[0], _ROWS):
            codes = self._weight.data[first : first + _ROWS]
            of_row, of_column = np.arange(first, first + len(codes)) // rows, np.arange(self.shape[1]) // columns
            numbers = E4M3[codes] * self._scales[of_row][:, of_column]
            if self.format == "BF16":
                parts.append((numbers.view(np.uint32) >> 16).astype("<u2").view(np.uint8))
            else:
                parts.append(numbers.astype("<f4").view(np.uint8))
        return np.concatenate(parts)
