"""Every format that we read gives the bits that the gguf package gives."""

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from outpace.ops.formats import BLOCKS, dequantise, row_bytes
from outpace.types import RawTensor

ROWS, WIDTH = 9, 512
HALVES = {  # where float16 scales lie
    **{"Q6_K": (208,), "Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2)},
    **{"Q2_K": (80, 82), "Q3_K": (108,), "MXFP4": ()},
}


def random_blocks(format: str) -> NDArray[np.uint8]:
    """Return random bytes in which only the float16 scales are made sane, [ROWS, bytes per row]."""
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (ROWS, row_bytes("w", format, WIDTH)), dtype=np.uint8)
    if format in ("F32", "F16", "BF16"):
        numbers = rng.standard_normal((ROWS, WIDTH), np.float32)
        return gguf.quants.quantize(numbers, gguf.GGMLQuantizationType[format]).view(np.uint8).reshape(ROWS, -1)
    blocks = data.reshape(-1, BLOCKS[format].bytes)
    for offset in HALVES.get(format, (0,)):
        blocks[:, offset : offset + 2] = rng.standard_normal((len(blocks), 1)).astype("<f2").view(np.uint8)
    return data


@pytest.mark.parametrize("format", list(BLOCKS))
def test_random_blocks_have_the_bits_of_gguf(format: str) -> None:
    data = random_blocks(format)
    with np.errstate(over="ignore"):  # MXFP4's largest exponents
        expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[format])
    if format in ("F32", "F16"):  # gguf takes these as numbers
        expected = data.view({"F32": np.float32, "F16": np.float16}[format]).astype(np.float32)
    found = dequantise(RawTensor("w", data, format, (ROWS, WIDTH)))
    assert np.unique(found).size > 100
    assert found.tobytes() == expected.astype(np.float32).tobytes()


@pytest.mark.parametrize("format", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantised_numbers_come_back_close(format: str) -> None:
    x = np.random.default_rng(0).standard_normal((ROWS, WIDTH), np.float32)
    data = gguf.quants.quantize(x, gguf.GGMLQuantizationType[format])
    found = dequantise(RawTensor("w", data, format, (ROWS, WIDTH)))
    assert np.abs(found - x).max() < {"8": 0.02, "5": 0.3, "4": 0.6}[format[1]]


def test_block_sizes_are_gguf_s() -> None:
    for format, block in BLOCKS.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[format]] == tuple(block)
