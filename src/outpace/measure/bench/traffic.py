"""Bytes that decoding must read, and how fast this machine reads: the limit that every speed is compared with."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import numpy as np

from outpace.api import LanguageModel
from outpace.ops.protocol import Ops
from outpace.weights.checkpoint import open_checkpoint

_READ = 100_000_000


def weight_bytes(lm: LanguageModel) -> int:
    """Return the bytes of weights that one pass reads, as stored: all but an embedding that is only looked up in."""
    embedding = 0 if lm.config.tied else open_checkpoint(lm.path).tensors["model.embed_tokens.weight"].data.nbytes
    return lm.num_bytes - embedding


def read_bandwidth(ops: Ops, repeats: int = 3) -> float:
    """Return GB/s of a streaming read by all threads, the median of a few: by the ops if they can, else by NumPy."""
    measure = getattr(ops, "read_bandwidth", None)
    if measure is not None:
        return float(median(measure(_READ, repeats)))
    return median(_numpy_read(ops.threads) for _ in range(repeats))


def _numpy_read(threads: int) -> float:
    parts = np.array_split(np.ones(_READ // 8), threads)
    with ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        for _ in pool.map(np.sum, parts):
            pass
        return _READ / (time.perf_counter() - started) / 1e9
