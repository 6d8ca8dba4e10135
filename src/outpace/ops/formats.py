"""The number formats of model files: what a block of each weighs, and how it becomes float32.

A row (the last dimension) is a run of blocks. The formulas, and the order of their float32 operations, are those of
the `gguf` package, so the results are bitwise equal to its own (`tests/parity/test_dequantise_parity.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from outpace.errors import WeightsError
from outpace.types import RawTensor

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


class Block(NamedTuple):
    """How many numbers a block of a format holds, and in how many bytes."""

    size: int
    bytes: int


BLOCKS = {
    "F32": Block(1, 4),
    "F16": Block(1, 2),
    "BF16": Block(1, 2),
    "Q8_0": Block(32, 34),
    "Q4_0": Block(32, 18),
    "Q4_1": Block(32, 20),
    "Q5_0": Block(32, 22),
    "Q5_1": Block(32, 24),
    "Q4_K": Block(256, 144),
    "Q5_K": Block(256, 176),
    "Q6_K": Block(256, 210),
    "Q2_K": Block(256, 84),
    "Q3_K": Block(256, 110),
    "IQ4_NL": Block(32, 18),
    "IQ4_XS": Block(256, 136),
    "MXFP4": Block(32, 17),
}

# What a four-bit code stands for, times its block's scale.
IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
FP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)  # E2M1, doubled


def row_bytes(name: str, format: str, width: int) -> int:
    """Return the bytes of a row of `width` numbers; WeightsError if the format cannot hold such a row."""
    block = BLOCKS.get(format)
    if block is None:
        raise WeightsError(f"tensor {name!r} has the format {format!r}; supported are {', '.join(BLOCKS)}")
    if width % block.size:
        raise WeightsError(
            f"tensor {name!r} has rows of {width} numbers; {format} stores multiples of {block.size}: "
            "the file is damaged"
        )
    return width // block.size * block.bytes


def dequantise(tensor: RawTensor) -> Floats:
    """Return the tensor's numbers, float32 of its shape. WeightsError if bytes and shape disagree."""
    width = tensor.shape[-1]
    rows = math.prod(tensor.shape[:-1])
    expected = (rows, row_bytes(tensor.name, tensor.format, width))
    if tensor.data.shape != expected:
        raise WeightsError(
            f"tensor {tensor.name!r} of shape {tensor.shape} needs {expected[0]} rows of {expected[1]} bytes in "
            f"{tensor.format}, got {tensor.data.shape}: the file is damaged"
        )
    blocks = np.ascontiguousarray(tensor.data).reshape(-1, BLOCKS[tensor.format].bytes)
    return _DECODERS[tensor.format](blocks).reshape(tensor.shape)


def _half(raw: Bytes) -> Floats:
    return raw.view("<f2").astype(np.float32)


def _f32(b: Bytes) -> Floats:
    return b.view("<f4").astype(np.float32)


def _bf16(b: Bytes) -> Floats:
    return (b.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _nibbles(raw: Bytes, run: int = 16) -> Bytes:
    """Return the low halves of each `run` bytes, then their high halves: uint8 [n, 2 * bytes]."""
    runs = raw.reshape(len(raw), -1, 1, run)
    return np.asarray((runs >> np.array([[0], [4]], np.uint8)) & 15, np.uint8).reshape(len(raw), -1)


def _fifth_bits(raw: Bytes) -> Bytes:
    """Return bit i of each little-endian 32-bit word as 16 (set) or 0: uint8 [n, 32]."""
    return np.asarray(np.unpackbits(raw, axis=1, bitorder="little") << 4, np.uint8)


def _q8_0(b: Bytes) -> Floats:
    return b[:, 2:].view(np.int8).astype(np.float32) * _half(b[:, :2])


def _q4_0(b: Bytes) -> Floats:
    return _half(b[:, :2]) * (_nibbles(b[:, 2:]).astype(np.float32) - 8)


def _q4_1(b: Bytes) -> Floats:
    return _half(b[:, :2]) * _nibbles(b[:, 4:]).astype(np.float32) + _half(b[:, 2:4])


def _q5_0(b: Bytes) -> Floats:
    q = _nibbles(b[:, 6:]) | _fifth_bits(b[:, 2:6])
    return _half(b[:, :2]) * (q.astype(np.float32) - 16)


def _q5_1(b: Bytes) -> Floats:
    q = _nibbles(b[:, 8:]) | _fifth_bits(b[:, 4:8])
    return _half(b[:, :2]) * q.astype(np.float32) + _half(b[:, 2:4])


def _six_bit_scales(raw: Bytes) -> tuple[Floats, Floats]:
    """Return the eight scales and eight minimums packed into 12 bytes, each [n, 8].

    Bytes 0-3 and 4-7 hold the first four of each in their low 6 bits; their two high bits are the high bits of
    the last four, whose low 4 bits are the nibbles of bytes 8-11.
    """
    first, second, nibbles = raw[:, :4], raw[:, 4:8], raw[:, 8:]
    scales = np.concatenate([first & 63, (nibbles & 15) | ((first >> 6) << 4)], axis=1)
    minimums = np.concatenate([second & 63, (nibbles >> 4) | ((second >> 6) << 4)], axis=1)
    return scales.astype(np.float32), minimums.astype(np.float32)


def _k_quant(b: Bytes, q: Bytes) -> Floats:
    """Return q scaled by its group's six-bit scale and minimum: eight groups of 32 in a block."""
    scales, minimums = _six_bit_scales(b[:, 4:16])
    scale, minimum = _half(b[:, :2]) * scales, _half(b[:, 2:4]) * minimums
    return scale[:, :, None] * q.reshape(-1, 8, 32).astype(np.float32) - minimum[:, :, None]


def _q4_k(b: Bytes) -> Floats:
    return _k_quant(b, _nibbles(b[:, 16:], run=32))


def _q5_k(b: Bytes) -> Floats:
    high = (b[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & 1  # bit g of byte i: group g, number i
    return _k_quant(b, _nibbles(b[:, 48:], run=32) | np.asarray(high.reshape(len(b), 256) << 4, np.uint8))


def _q6_k(b: Bytes) -> Floats:
    low = _nibbles(b[:, :128], run=64)
    pairs = b[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([[0], [2], [4], [6]], np.uint8)
    q = (low | ((pairs.reshape(len(b), 256) & 3) << 4)).astype(np.float32) - 32
    scale = _half(b[:, 208:]) * b[:, 192:208].view(np.int8).astype(np.float32)
    return scale[:, :, None] * q.reshape(-1, 16, 16)


def _pairs(raw: Bytes, run: int = 32) -> Bytes:
    """Return the lowest two bits of each `run` bytes, then the next two, and so on: uint8 [n, 4 * bytes]."""
    runs = raw.reshape(len(raw), -1, 1, run)
    return np.asarray((runs >> np.array([[0], [2], [4], [6]], np.uint8)) & 3, np.uint8).reshape(len(raw), -1)


def _q2_k(b: Bytes) -> Floats:
    scale = _half(b[:, 80:82]) * (b[:, :16] & 15).astype(np.float32)
    minimum = _half(b[:, 82:]) * (b[:, :16] >> 4).astype(np.float32)
    return scale[:, :, None] * _pairs(b[:, 16:80]).reshape(-1, 16, 16).astype(np.float32) - minimum[:, :, None]


def _q3_k(b: Bytes) -> Floats:
    high = ((b[:, None, :32] >> np.arange(8, dtype=np.uint8)[:, None]) & 1).reshape(len(b), 256)
    q = (_pairs(b[:, 32:96]) | np.asarray(high << 2, np.uint8)).astype(np.float32) - 4
    six_bits = _nibbles(b[:, 96:104], run=8) | (_pairs(b[:, 104:108], run=4) << 4)
    scale = _half(b[:, 108:]) * (six_bits.astype(np.float32) - 32)
    return scale[:, :, None] * q.reshape(-1, 16, 16)


def _iq4_nl(b: Bytes) -> Floats:
    return _half(b[:, :2]) * IQ4_VALUES[_nibbles(b[:, 2:])]


def _iq4_xs(b: Bytes) -> Floats:
    low = (b[:, 4:8, None] >> np.array([0, 4], np.uint8)).reshape(-1, 8) & 15
    high = (b[:, 2:4].view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16)) & 3
    scale = _half(b[:, :2]) * ((low | (high << 4)).astype(np.float32) - 32)
    return scale[:, :, None] * IQ4_VALUES[_nibbles(b[:, 8:])].reshape(-1, 8, 32)


def _mxfp4(b: Bytes) -> Floats:
    """The scale is a power of two, its exponent alone: half of 2^(e - 127), subnormal for e < 2."""
    e = b[:, :1].astype(np.uint32)
    bits = np.where(e < 2, np.uint32(0x00200000) << np.minimum(e, 1), (np.maximum(e, 1) - 1) << 23)
    with np.errstate(over="ignore"):  # the largest exponents, which no model has, give infinities
        return bits.astype(np.uint32).view(np.float32) * FP4_VALUES[_nibbles(b[:, 1:])]


_DECODERS: dict[str, Callable[[Any], Floats]] = {
    "F32": _f32,
    "F16": _half,
    "BF16": _bf16,
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4,
}
