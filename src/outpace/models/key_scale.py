"""How much smaller some channels of the keys are stored than they are, so that int8 keeps the others too.

A bias of the keys' product is the same at every position, and in some models (qwen2) a few channels of it are a hundred
times larger than everything else. An int8 cache has one scale for 32 channels of a token, so the others would be
rounded to nothing. A static factor s for each rotary pair evens them out: the cache keeps k / s, and queries are
multiplied by s, which leaves every product as it was (SmoothQuant, arXiv:2211.10438, there for activations and
weights). Both channels of a pair have the same factor, because rotation mixes them.

Factors are powers of two: of float32 and bfloat16 caches no score changes a bit.
"""

from __future__ import annotations

import numpy as np

from outpace.ops.formats import dequantise
from outpace.types import RawTensor

# How far the largest of the other channels usually goes, in standard deviations. Measured on SmolLM2-135M with biases
# of 15 to 200 added: 3 to 6 give the divergence of the model without them, 9 and more lose it again.
_REACH = 4.0
_LARGEST = 2.0**16
_EVERY = 4  # rows of the matrix that are looked at: one of so many


def key_scale(bias: RawTensor, matrix: RawTensor, norm: RawTensor | None, num_kv_heads: int) -> RawTensor | None:
    """Return the factors s >= 1 of all key channels, [G * K] powers of two; None where no channel needs one.

    bias [G * K] and matrix [G * K, D] are those of the keys, pairs (i, i + K / 2) within a head; norm [D] is the weight
    of the RMS norm before them. A channel without its bias varies by about the length of its row times the norm's
    weight, because what comes out of an RMS norm has the mean square 1.
    """
    b = dequantise(bias).reshape(num_kv_heads, 2, -1).astype(np.float64)
    length = np.hypot(b[:, 0], b[:, 1])  # [G, K / 2]: of each pair's constant part
    usual = _REACH * _spread(matrix, norm, num_kv_heads)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):  # a damaged file's numbers: the network will show them
        ratio = np.where((usual > 0) & np.isfinite(usual) & np.isfinite(length), length / usual, 1.0)
    factors = np.exp2(np.rint(np.log2(ratio.clip(1.0, _LARGEST))))
    if (factors == 1.0).all():
        return None
    numbers = np.concatenate([factors, factors], axis=1).astype("<f4").reshape(1, -1)
    return RawTensor(f"scale of {bias.name}", numbers.view(np.uint8), "F32", bias.shape)


def _spread(
    matrix: RawTensor, norm: RawTensor | None, num_kv_heads: int
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the standard deviation of a usual channel of each head, [G]: the median of some of its rows' lengths."""
    width = matrix.shape[1]
    per_head = matrix.data.reshape(num_kv_heads, -1, matrix.data.shape[1])[:, ::_EVERY]
    rows = per_head.reshape(-1, matrix.data.shape[1])
    numbers = dequantise(RawTensor(matrix.name, np.ascontiguousarray(rows), matrix.format, (len(rows), width)))
    weighted = numbers if norm is None else numbers * dequantise(norm)
    lengths = np.sqrt(np.einsum("ij,ij->i", weighted, weighted, dtype=np.float64))
    return np.asarray(np.median(lengths.reshape(num_kv_heads, -1), axis=1))
