"""Randomness that belongs to the position, not to the moment: Philox4x32-10 and Gumbel noise.

Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". The generator is a pure function of
(key, counter): key = the 64-bit seed; counter = (absolute position, token id >> 2, sample index, stream);
lane = token id & 3. Every ops implementation must reproduce the test vectors in `tests/unit/ops/test_philox.py`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW, _32 = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox4x32(key: int, counter: tuple[int, NDArray[np.uint64], int, int]) -> NDArray[np.uint32]:
    """Return ten rounds of Philox for counters that differ in their second word: uint32 [n, 4]."""
    c1 = np.asarray(counter[1], np.uint64) & _LOW
    c0, c2, c3 = (np.full_like(c1, word & 0xFFFFFFFF) for word in (counter[0], counter[2], counter[3]))
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (
            (p1 >> _32) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _32) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def uniform(seed: int, position: int, tokens: int, sample_index: int, stream: int) -> NDArray[np.float64]:
    """Return u = (r + 1/2) 2^-32 in (0, 1) for token ids [0, tokens), float64."""
    words = np.arange((tokens + 3) // 4, dtype=np.uint64)
    bits = philox4x32(seed, (position, words, sample_index, stream))
    return (bits.reshape(-1)[:tokens].astype(np.float64) + 0.5) * 2.0**-32


def gumbel(seed: int, position: int, tokens: int, sample_index: int, stream: int) -> NDArray[np.float32]:
    """Return g = -log(-log(u)) for token ids [0, tokens): computed in float64, rounded to float32."""
    u = uniform(seed, position, tokens, sample_index, stream)
    return (-np.log(-np.log(u))).astype(np.float32)


def uniform_at(seed: int, position: int, token: int, sample_index: int, stream: int) -> float:
    """Return `uniform` of one token id."""
    bits = philox4x32(seed, (position, np.array([token >> 2], np.uint64), sample_index, stream))
    return float((float(bits[0, token & 3]) + 0.5) * 2.0**-32)
