"""Measure attention by itself: its share of a pass, and how fast it reads keys and values beside a streaming read.

The network has a real model's shapes, and its keys and values are random. For each case stand the time of a pass, that
of attention in all layers, the speed at which attention reads the keys and values that it has to (each once for all
rows that share them), and that of a streaming read. Times are medians of repeats, by the clock of the ops (work of the
calling thread, so what others do on the machine disturbs little with --threads 1).

With --against FOLDER, the sources of another checkout (built), both run by turns and the ratio other / this is shown.

    python -m benchmarks.attention [--kv bf16] [--threads 1] [--cases "1 at 128,8 at 512"] [--against FOLDER/src]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import IO, Any

import numpy as np

from benchmarks.ops import BLOCK, MODELS, Bench, draft
from outpace.ops.native import NativeOps
from outpace.types import Segment

CHUNK = 512  # tokens that a prefill takes at once
TEXTS, TEXT = 32, 128
CASES = [
    "1 at 128", "1 at 512", "1 at 2048", "1 at 8000", "8 at 128", "8 at 512", "8 at 2048", "16 at 128", "16 at 512",
    "16 at 2048", "32 texts at 128", "prefill 1024", "prefill 4096",
]  # fmt: skip


class Cases:
    """One build of the ops, with a network and room for the longest case."""

    def __init__(self, model: str, format: str, kv: Any, threads: int) -> None:
        self.num_blocks = max(8000 // BLOCK + 2, TEXTS * (TEXT // BLOCK + 1))
        self.bench = Bench(model, format, kv, NativeOps(threads), self.num_blocks, 1)
        config = self.bench.model.config
        self.width = config.num_heads * config.head_width
        blocks = list(range(self.num_blocks))
        rng = np.random.default_rng(0)
        for start in range(0, (self.num_blocks - 1) * BLOCK, CHUNK):
            count = min(CHUNK, self.num_blocks * BLOCK - start)
            tokens = rng.integers(0, config.vocab_size, count).tolist()
            self._store(Segment(blocks, start, tokens, num_scored=0))

    def _store(self, segment: Segment) -> None:
        """Fill the slots of a segment in all layers with random keys and values."""
        ops, config = self.bench.ops, self.bench.model.config
        plan, rng = ops.plan([segment], BLOCK), np.random.default_rng(segment.start)
        for layer in self.bench.model.layers:
            q, k, v = (
                ops.array(rng.standard_normal((len(segment.tokens), heads * config.head_width)).astype(np.float32))
                for heads in (config.num_heads, config.num_kv_heads, config.num_kv_heads)
            )
            ops.rope_store(q, k, v, layer.handle, self.bench.kv, plan)

    def passes(self, case: str) -> list[list[Segment]]:
        """Return the segments of each pass of a case."""
        blocks, number = list(range(self.num_blocks)), [int(word) for word in case.split() if word.isdigit()]
        if case.startswith("prefill"):
            starts = range(0, number[0], CHUNK)
            return [[Segment(blocks, start, [7] * min(CHUNK, number[0] - start))] for start in starts]
        if "texts" in case:
            each = number[1] // BLOCK + 1
            tables = [blocks[i * each : (i + 1) * each] for i in range(number[0])]
            return [[Segment(table, number[1], [7]) for table in tables]]
        return [[draft(blocks, number[1], number[0])]]

    def run(self, case: str, repeats: int) -> dict[str, Any]:
        """Return the seconds of the passes of a case and of attention in them, and the bytes that it reads."""
        ops, passes = self.bench.ops, self.passes(case)
        plans = [ops.plan(segments, BLOCK) for segments in passes]
        rows = [sum(len(segment.tokens) for segment in segments) for segments in passes]
        rng = np.random.default_rng(0)
        queries = [ops.array(rng.standard_normal((count, self.width)).astype(np.float32)) for count in rows]

        def attend() -> None:
            for q, plan in zip(queries, plans, strict=True):
                for layer in self.bench.model.layers:
                    ops.attend(q, layer.handle, self.bench.kv, plan)

        def whole() -> None:
            for plan in plans:
                self.bench.model.forward(plan, self.bench.kv)

        seen = sum(segment.start + len(segment.tokens) for segments in passes for segment in segments)
        size = seen * self.bench.spec.bytes_per_token
        read = [size / 1e9 / speed for speed in ops.read_bandwidth(max(size, 20_000_000), 3)]
        return {
            "pass": [self._time(whole) for _ in range(repeats)],
            "attention": [self._time(attend) for _ in range(repeats)],
            "bytes": size,
            "read": [seconds * max(size, 20_000_000) / size for seconds in read],
        }

    def _time(self, run: Callable[[], object]) -> float:
        start = self.bench.ops.clock()
        run()
        return float(self.bench.ops.clock() - start)


class Build:
    """A process with one build of the ops."""

    def __init__(self, source: str | None, arguments: Sequence[str]) -> None:
        path = os.pathsep.join([source] if source else [])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.attention", "--serve", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ({"PYTHONPATH": path} if path else {}),
        )

    def ask(self, case: str, repeats: int) -> dict[str, Any]:
        """Return what `Cases.run` measured there."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([case, repeats]), file=self.process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def serve(cases: Cases, asked: IO[str]) -> None:
    """Answer questions until there are no more."""
    for line in asked:
        print(json.dumps(cases.run(*json.loads(line))), flush=True)


def report(case: str, rounds: list[list[dict[str, Any]]]) -> str:
    """Return a case's line; rounds: each with what every build measured, this one first."""

    def median(build: int, key: str) -> float:
        return float(statistics.median(seconds for answers in rounds for seconds in answers[build][key]))

    attention, whole, read = (median(0, key) for key in ("attention", "pass", "read"))
    speed = rounds[0][0]["bytes"] / 1e9
    line = (
        f"  {case:16} pass {whole * 1e3:8.2f} ms, attention {attention * 1e3:8.2f} ms ({attention / whole:4.0%}),"
        f" {speed / attention:5.1f} GB/s, read {speed / read:5.1f} GB/s"
    )
    for build in range(1, len(rounds[0])):
        ratios = {
            key: statistics.median(
                statistics.median(answers[build][key]) / statistics.median(answers[0][key]) for answers in rounds
            )
            for key in ("attention", "pass")
        }
        line += f"   other / this: attention {ratios['attention']:.2f}, pass {ratios['pass']:.2f}"
    return line


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", choices=MODELS)
    parser.add_argument("--format", default="Q4_1")
    parser.add_argument("--kv", default="bf16", choices=("f32", "bf16", "int8"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="in each round")
    parser.add_argument("--against", help="the folder `src` of another checkout")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.serve:
        serve(Cases(args.model, args.format, args.kv, args.threads), sys.stdin)
        return
    passed = ["--model", args.model, "--format", args.format, "--kv", args.kv, "--threads", str(args.threads)]
    builds = [Build(source, passed) for source in ([None, args.against] if args.against else [None])]
    print(f"{args.model} {args.format}, KV {args.kv}, {args.threads} threads")
    for case in args.cases.split(","):
        rounds = [[build.ask(case, args.repeats) for build in builds] for _ in range(args.rounds)]
        print(report(case, rounds), flush=True)
    for build in builds:
        build.close()


if __name__ == "__main__":
    main()
