"""Matrix products: each number is one dot product of a row of x and a row of the weight, whatever else is in the call.

A BLAS library may sum in an order that it picks by the shapes it is given and by its number of threads. A matrix
product would so tie a row of the result to its neighbours; a dot product of two rows of one fixed length cannot.
NumPy's vecdot makes one BLAS call for each, in a C loop without the GIL, so a pool of threads may share out the weight.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TILE = 64  # rows of x that meet a row of the weight while it is in the nearest cache
_PIECE = 8192  # longer rows are cut here: OpenBLAS shares out dot products of more than 10,000 numbers
_SHARE = 1 << 18  # multiplications that are worth a thread

Floats = NDArray[Any]


def multiply(x: Floats, weight: Floats, pool: ThreadPoolExecutor | None, threads: int) -> Floats:
    """Return x @ weight.T, [T, out]: the same bits for a row whatever T and `threads` are."""
    assert x.shape[1] == weight.shape[1], f"rows of {x.shape[1]} numbers met a weight of shape {weight.shape}"
    out = len(weight)
    result = np.empty((out, len(x)), x.dtype)

    def share(first: int, last: int) -> None:
        for row in range(0, len(x), _TILE):
            result[first:last, row : row + _TILE] = _dots(weight[first:last], x[row : row + _TILE])

    shares = min(threads, out, 1 + len(x) * weight.size // _SHARE)
    if pool is None or shares < 2:
        share(0, out)
    else:
        cuts = [out * i // shares for i in range(shares + 1)]
        list(pool.map(share, cuts[:-1], cuts[1:]))
    return np.ascontiguousarray(result.T)


def _dots(w: Floats, x: Floats) -> Floats:
    """Return the dot product of each row of w with each row of x, [len(w), len(x)]."""
    width = x.shape[1]
    total: Floats = np.vecdot(w[:, None, :_PIECE], x[:, :_PIECE])
    for cut in range(_PIECE, width, _PIECE):
        total = total + np.vecdot(w[:, None, cut : cut + _PIECE], x[:, cut : cut + _PIECE])
    return total
