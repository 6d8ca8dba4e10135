"""Time the native matrix products: every format, 1 to 512 rows, relative to a streaming read of as many bytes.

    python -m benchmarks.matmul [--formats Q4_1 BF16] [--shape 1536x8960] [--rows 1 8 16] [--threads 2] [--repeats 9]

Each repeat measures the read and every number of rows once, so that all see the machine in the same state. The weights
are distinct copies, 64 MB or more together, so that no cache holds them. Row ratios are medians over repeats of
the ratio within one repeat.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from outpace.ops.formats import BLOCKS, row_bytes
from outpace.ops.native import _native as native

MIN_BYTES = 64_000_000  # twice the last-level cache of common machines


def copies_of(context: native.Context, format: str, out: int, width: int) -> list[Any]:
    """Return packed matrices of random small codes, as many as it takes to fill MIN_BYTES."""
    num_bytes = row_bytes("w", format, width)
    raw = np.random.default_rng(0).integers(0, 64, (out, num_bytes), dtype=np.uint8)
    count = -(-MIN_BYTES // raw.nbytes)
    return [context.pack(raw, format, out, width) for _ in range(count)]


def seconds_per_pass(context: native.Context, weights: list[Any], x: Any) -> float:
    """Return the seconds of multiplying x by every weight once."""
    start = time.perf_counter()
    for weight in weights:
        context.linear(x, weight, None)
    return time.perf_counter() - start


def measure(format: str, out: int, width: int, rows: list[int], threads: int, repeats: int) -> None:
    """Print a row per number of rows, for one format and shape."""
    context = native.Context(threads)
    weights = copies_of(context, format, out, width)
    num_bytes = sum(weight.num_bytes for weight in weights)
    rng = np.random.default_rng(1)
    inputs = [native.array(rng.standard_normal((n, width)).astype(np.float32)) for n in rows]
    reads, times = [], []
    for _ in range(repeats + 1):  # the first warms up
        reads.append(num_bytes / 1e9 / context.read_bandwidth(num_bytes, 1)[0])
        times.append([seconds_per_pass(context, weights, x) for x in inputs])
    reads, times = reads[1:], times[1:]
    print(f"{format} {out}x{width}, {num_bytes / 1e6:.0f} MB: read {num_bytes / 1e9 / min(reads):.1f} GB/s at best")
    for i, n in enumerate(rows):
        best = min(row[i] for row in times)
        of_read = median(read / row[i] for read, row in zip(reads, times, strict=True))
        ratio = median(row[i] / row[0] for row in times)
        speed = len(weights) * out * width * n / best / 1e9
        print(
            f"  {n:4d} rows: best {1e3 * best:8.2f} ms  {ratio:6.2f} x {rows[0]} row  "
            f"{of_read:5.0%} of the read  {speed:6.0f} GMAC/s"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", default=list(BLOCKS), choices=list(BLOCKS))
    parser.add_argument("--shape", default="1536x1536", help="out x in of a matrix")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args(arguments)
    out, width = map(int, options.shape.split("x"))
    print(f"instruction set: {native.isa()}, {options.threads} threads")
    for format in options.formats:
        measure(format, out, width, options.rows, options.threads, options.repeats)


if __name__ == "__main__":
    main()
