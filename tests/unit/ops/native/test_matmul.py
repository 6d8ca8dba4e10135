"""Packed matrices and their products, through the module that users load.

Kernels are chosen by the instruction set, so the last test runs all others once more for each that the machine has.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from outpace.errors import UsageError
from outpace.ops.formats import BLOCKS, dequantise, row_bytes
from outpace.types import RawTensor, Segment
from tests.unit.ops.native.instruction_sets import NAMES, ask, assert_passes, run_with

native = pytest.importorskip("outpace.ops.native._native")

FORMATS = tuple(BLOCKS)
QUANTISED = tuple(f for f in FORMATS if BLOCKS[f].size > 1)
FLOATS = tuple(f for f in FORMATS if BLOCKS[f].size == 1)
TILE = 16  # columns that are packed together

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def shapes(format: str) -> list[tuple[int, int]]:
    """Return (out, in) pairs: whole tiles and parts of one, odd numbers of blocks, the smallest and a long row."""
    block = BLOCKS[format].size
    if block == 1:
        return [(16, 64), (37, 95), (1, 1), (48, 577)]
    return [(16, 2 * block), (37, 3 * block), (1, block), (20, 5 * block), (50, 1536)]


ALL_SHAPES = [(format, out, width) for format in FORMATS for out, width in shapes(format)]


def random_tensor(format: str, out: int, width: int, seed: int = 0) -> RawTensor:
    """Return weights around [-1, 1]: random codes with sensible scales, or random numbers."""
    rng = np.random.default_rng([seed, out, width, *format.encode()])
    return RawTensor("w", _RAW[format](rng, out, width), format, (out, width))


def _floats(format: str) -> Callable[[np.random.Generator, int, int], Bytes]:
    def make(rng: np.random.Generator, out: int, width: int) -> Bytes:
        x = rng.standard_normal((out, width)).astype(np.float32)
        if format == "BF16":
            return (x.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        return x.astype({"F32": np.float32, "F16": np.float16}[format]).view(np.uint8)

    return make


def _blocks(format: str, halves: dict[int, tuple[float, float]]) -> Callable[[np.random.Generator, int, int], Bytes]:
    """Fill blocks with random bytes, but the halves at the given offsets with numbers of the given ranges."""
    size, num_bytes = BLOCKS[format]

    def make(rng: np.random.Generator, out: int, width: int) -> Bytes:
        blocks = rng.integers(0, 256, (out, width // size, num_bytes), dtype=np.uint8)
        for offset, (low, high) in halves.items():
            numbers = rng.uniform(low, high, blocks.shape[:2]).astype(np.float16)
            blocks[:, :, offset : offset + 2] = numbers[..., None].view(np.uint8)
        return blocks.reshape(out, -1)

    return make


def _exponents(rng: np.random.Generator, out: int, width: int) -> Bytes:
    """Return blocks of MXFP4: random codes, exponents of scales from 1/32 to 1/4."""
    blocks = rng.integers(0, 256, (out, width // 32, 17), dtype=np.uint8)
    blocks[:, :, 0] = rng.integers(123, 127, blocks.shape[:2])
    return blocks.reshape(out, -1)


_RAW = {format: _floats(format) for format in FLOATS} | {
    "Q8_0": _blocks("Q8_0", {0: (-0.01, 0.01)}),
    "Q4_0": _blocks("Q4_0", {0: (-0.1, 0.1)}),
    "Q4_1": _blocks("Q4_1", {0: (0, 0.1), 2: (-0.8, 0)}),
    "Q5_0": _blocks("Q5_0", {0: (-0.05, 0.05)}),
    "Q5_1": _blocks("Q5_1", {0: (0, 0.05), 2: (-0.8, 0)}),
    "Q4_K": _blocks("Q4_K", {0: (0, 0.002), 2: (0, 0.02)}),
    "Q5_K": _blocks("Q5_K", {0: (0, 0.001), 2: (0, 0.02)}),
    "Q6_K": _blocks("Q6_K", {208: (-0.0005, 0.0005)}),
    "Q2_K": _blocks("Q2_K", {80: (0, 0.05), 82: (0, 0.05)}),
    "Q3_K": _blocks("Q3_K", {108: (-0.01, 0.01)}),
    "IQ4_NL": _blocks("IQ4_NL", {0: (-0.01, 0.01)}),
    "IQ4_XS": _blocks("IQ4_XS", {0: (-0.0005, 0.0005)}),
    "MXFP4": _exponents,
}
HALVES = {  # where a block keeps its half floats
    **{"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)},
    **{"Q2_K": (80, 82), "Q3_K": (108,)},
}


def pack(tensor: RawTensor, threads: int = 2) -> object:
    out, width = tensor.shape
    return native.Context(threads).pack(tensor.data, tensor.format, out, width)


def linear(x: Floats, weight: object, threads: int = 2) -> Floats:
    return native.numpy(native.Context(threads).linear(native.array(np.ascontiguousarray(x)), weight, None))


def unpack(weight: object, out: int) -> Floats:
    """Return the packed matrix as the embedding lookup reads it."""
    tokens = Segment(blocks=range(out // 32 + 1), start=0, tokens=range(out))
    return native.numpy(native.Context(1).embed(weight, native.plan([tokens], 32)))


def random_rows(rows: int, width: int) -> Floats:
    """Return rows of very different size, some with a few large numbers, as hidden states have them."""
    rng = np.random.default_rng([rows, width])
    x = rng.standard_normal((rows, width)) * 10.0 ** rng.uniform(-3, 3, (rows, 1))
    x[:, :: 1 + width // 3] *= 30
    return x.astype(np.float32)


def rounded(x: Floats, format: str) -> NDArray[np.float64]:
    """Return x as the kernels see it: int8 per group of 32, bfloat16 or as it is."""
    if format in QUANTISED:
        groups = x.reshape(len(x), -1, 32)
        largest = np.abs(groups).max(axis=-1, keepdims=True)
        q = np.rint(groups * (np.float32(127) / largest))
        return (q.astype(np.float64) * (largest / np.float32(127))).reshape(x.shape)
    if format == "BF16" and native.has_bf16_dot():
        bits = x.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32).astype(np.float64)
    return x.astype(np.float64)


@pytest.mark.parametrize(("format", "out", "width"), ALL_SHAPES)
def test_a_packed_matrix_gives_back_every_number_exactly(format: str, out: int, width: int) -> None:
    tensor = random_tensor(format, out, width)
    assert unpack(pack(tensor), out).tobytes() == dequantise(tensor).tobytes()


@pytest.mark.parametrize(("format", "out", "width"), ALL_SHAPES)
def test_a_product_is_that_of_float64_but_for_float32_sums(format: str, out: int, width: int) -> None:
    """The tolerance is some 16 roundings of the sum of magnitudes; a wrong code, scale or offset is far outside."""
    tensor, x = random_tensor(format, out, width), random_rows(19, width)
    w = dequantise(tensor).astype(np.float64)
    seen = rounded(x, format)
    error = np.abs(linear(x, pack(tensor)) - seen @ w.T)
    assert np.all(error <= 1e-6 * (np.abs(seen) @ np.abs(w).T))


@pytest.mark.parametrize("byte", [0x00, 0x7F, 0x80, 0xFF])
@pytest.mark.parametrize("format", QUANTISED)
def test_the_largest_codes_and_activations_do_not_overflow(format: str, byte: int) -> None:
    """Every code at one end of its range, all activations of a row at the ends of theirs."""
    tensor = random_tensor(format, TILE, 512)
    ends = np.full_like(tensor.data, byte)
    blocks, halves = (data.reshape(TILE, -1, BLOCKS[format].bytes) for data in (ends, tensor.data))
    for offset in HALVES.get(format, (0,)):
        blocks[..., offset : offset + 2] = halves[..., offset : offset + 2]
    tensor = RawTensor("w", ends, format, (TILE, 512))
    x = np.ones((3, 512), np.float32)
    x[1], x[2, ::2] = -1, -1
    exact = x.astype(np.float64) @ dequantise(tensor).astype(np.float64).T
    scale = np.abs(x).astype(np.float64) @ np.abs(dequantise(tensor)).astype(np.float64).T
    assert np.all(np.abs(linear(x, pack(tensor)) - exact) <= 1e-5 * scale + 1e-30)


@pytest.mark.parametrize("format", FORMATS)
def test_rounded_activations_cost_little_accuracy(format: str) -> None:
    """int8 with a scale per 32 numbers: an error of 1 / 254 of the largest of 32 at most, so about 0.7 % of a sum."""
    tensor = random_tensor(format, 64, 1536)
    x = np.random.default_rng(1).standard_normal((8, 1536)).astype(np.float32)
    exact = x.astype(np.float64) @ dequantise(tensor).astype(np.float64).T
    error = np.sqrt(np.mean((linear(x, pack(tensor)) - exact) ** 2) / np.mean(exact**2))
    assert error < (0.012 if format in QUANTISED else 0.004 if format == "BF16" else 1e-6)


@pytest.mark.parametrize("format", FORMATS)
def test_a_row_has_the_same_bits_whatever_else_is_in_the_call(format: str) -> None:
    out, width = 53, 768 if BLOCKS[format].size == 256 else 27 * 32  # tiles in twos and one alone; an unfinished unit
    weight, x = pack(random_tensor(format, out, width)), random_rows(512, width)
    alone = np.concatenate([linear(row[None], weight, threads=1) for row in x])
    for rows in (*range(2, 66), 100, 511, 512):
        assert linear(x[:rows], weight).tobytes() == alone[:rows].tobytes(), f"{rows} rows"
    order = np.random.default_rng(2).permutation(512)
    assert linear(x[order], weight, threads=1).tobytes() == alone[order].tobytes()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_the_number_of_threads_changes_no_bit(format: str, threads: int) -> None:
    """So many tiles that threads take several pieces each. Memory is used again: what it held must not pass for y."""
    tensor, inputs = random_tensor(format, 1003, 1024), random_rows(42, 1024).reshape(2, 21, 1024)
    alone = pack(tensor, threads=1)
    expected = [linear(x, alone, threads=1).tobytes() for x in inputs]
    weight = pack(tensor, threads=threads)
    for _ in range(5):
        assert [linear(x, weight, threads).tobytes() for x in inputs] == expected


@pytest.mark.parametrize("format", FORMATS)
def test_a_column_has_the_same_bits_whatever_columns_surround_it(format: str) -> None:
    tensor, x = random_tensor(format, 40, 256), random_rows(5, 256)
    whole = linear(x, pack(tensor))
    for first in (0, 1, 15, 16, 39):
        part = RawTensor("w", tensor.data[first:].copy(), format, (40 - first, 256))
        assert linear(x, pack(part)).tobytes() == np.ascontiguousarray(whole[:, first:]).tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("format", FORMATS)
def test_a_number_that_is_not_finite_shows_in_its_row_and_in_no_other(format: str, bad: float) -> None:
    weight, x = pack(random_tensor(format, 20, 256)), random_rows(3, 256)
    clean = linear(x, weight)
    x[1, 77] = bad
    found = linear(x, weight)
    assert not np.isfinite(found[1]).any()
    assert found[[0, 2]].tobytes() == clean[[0, 2]].tobytes()


@pytest.mark.parametrize("format", FORMATS)
def test_zeros_and_vanishing_numbers_give_vanishing_products(format: str) -> None:
    x = np.stack([np.zeros(256), np.full(256, 1e-38), np.full(256, 1e-42)]).astype(np.float32)
    found = linear(x, pack(random_tensor(format, 20, 256)))
    assert np.all(found[0] == 0)
    assert np.all(np.abs(found) < 1e-34)


@pytest.mark.parametrize("format", FORMATS)
def test_packing_inflates_by_three_percent_at_most(format: str) -> None:
    weight = pack(random_tensor(format, 10 * TILE, 1536))
    assert weight.num_bytes <= 1.03 * 10 * TILE * row_bytes("w", format, 1536)


def test_a_row_that_blocks_do_not_fill_is_refused() -> None:
    with pytest.raises(UsageError, match="Q4_1 needs rows of a multiple of 32 numbers, got 48"):
        native.Context(1).pack(np.zeros((4, 30), np.uint8), "Q4_1", 4, 48)


@pytest.mark.parametrize(("out", "width"), [(0, 32), (32, 0), (-1, 32), (2**40, 32), (2**31, 2**32)])
def test_sides_that_no_matrix_has_are_refused(out: int, width: int) -> None:
    with pytest.raises(UsageError, match="sides"):
        native.Context(1).pack(np.zeros((1, 64), np.uint8), "F16", out, width)


def test_bytes_that_do_not_fit_the_shape_are_refused() -> None:
    with pytest.raises(UsageError, match="bytes must be"):
        native.Context(1).pack(np.zeros((4, 40), np.uint8), "Q4_1", 4, 32)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UsageError, match="IQ1_S"):
        native.Context(1).pack(np.zeros((4, 50), np.uint8), "IQ1_S", 4, 256)


def print_packed() -> None:
    """Print the packed bytes of every format and shape, as one hash each."""
    for format, out, width in ALL_SHAPES:
        print(format, out, width, hashlib.sha256(pack(random_tensor(format, out, width)).tiles).hexdigest())


def test_every_instruction_set_packs_the_same_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    """The baseline moves dword by dword; the others transpose whole tiles in vectors."""
    print_packed()
    code = f"from {__name__} import print_packed; print_packed()"
    plain = run_with("baseline", "-c", code)
    assert plain.stdout == capsys.readouterr().out, plain.stderr
    assert len(plain.stdout.splitlines()) == len(ALL_SHAPES)


def test_an_unknown_instruction_set_is_refused_by_name() -> None:
    found = ask("sse9")
    assert found.returncode != 0
    assert "OUTPACE_ISA is 'sse9': allowed are baseline, avx2, avx512" in found.stderr


@pytest.mark.parametrize("isa", NAMES)
def test_all_of_this_holds_for_each_instruction_set(isa: str) -> None:
    assert_passes(__file__, isa)
