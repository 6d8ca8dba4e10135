"""Measure what a step costs in Python outside the ops: microseconds with an empty draft, and with 16 nodes.

The ops answer at once, so what remains is the loop, the cache, the sampler's rows and the drafter protocol.

    python -m benchmarks.overhead [--steps 2000]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from outpace.cache import Cache
from outpace.engine.decode import Decoder
from outpace.engine.sequence import SequenceState
from outpace.engine.stop import Output
from outpace.runner import Runner
from outpace.types import KVSpec, Options, Request, SamplingParams
from outpace.types.tree import DraftTree


class IdleOps:
    """Ops that compute nothing: token 7 always, at once."""

    name, threads = "idle", 1

    def __init__(self) -> None:
        self.tokens = np.full((64, 1), 7)

    def kv_alloc(self, spec: KVSpec, num_blocks: int) -> None: ...
    def kv_grow(self, kv: None, num_blocks: int) -> None: ...
    def kv_move(self, kv: None, sources: Any, targets: Any) -> None: ...
    def plan(self, segments: Any, block_size: int) -> None: ...
    def synchronize(self) -> None: ...
    def clock(self) -> float:
        return time.perf_counter()

    def sample(self, logits: None, batch: Any, k: int = 1) -> Any:
        return self.tokens[: len(batch)]


class Fixed:
    """A drafter that always proposes the same tree: 16 nodes in two chains, all rejected but the first three."""

    name = "fixed"
    taps: tuple[int, ...] = ()

    def __init__(self, num_nodes: int) -> None:
        half = num_nodes // 2
        tokens = (*([7, 7, 7] + [8] * (half - 3)), *range(10, 10 + half))
        parents = (*range(-1, half - 1), -1, *range(half, 2 * half - 1))
        self.parts = tokens, parents, (("fixed",),) * len(tokens), (0.5,) * len(tokens)

    def propose(self, sequences: Any, budgets: Any) -> list[DraftTree]:
        return [DraftTree(*self.parts) for _ in sequences]

    def observe(self, steps: Any, passed: Any) -> None: ...
    def forget(self, request: int) -> None: ...


def measure(num_nodes: int, sampling: SamplingParams, steps: int) -> float:
    """Return the median microseconds of a step."""
    ops: Any = IdleOps()
    model: Any = SimpleNamespace(
        config=SimpleNamespace(vocab_size=49152, context=1 << 20), forward=lambda plan, kv, taps: (None, {})
    )
    cache = Cache(ops, KVSpec(1, 1, 8), capacity=1 << 15)
    loop = Decoder(Runner(model, ops, cache))
    options = Options(sampling=sampling, max_new_tokens=1 << 18, max_draft=max(num_nodes, 1))
    request = Request.of(range(512), options)
    output = Output(request, 1 << 20)
    loop.add([SequenceState(request, output, drafter=Fixed(num_nodes) if num_nodes else None)])
    times = []
    for _ in range(steps):
        started = time.perf_counter()
        loop.step()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    steps = parser.parse_args(arguments).steps
    for name, sampling in (("greedy", SamplingParams()), ("sampled", SamplingParams(temperature=0.8, top_p=0.9))):
        for num_nodes in (0, 16):
            print(f"{name:8} {num_nodes:2} nodes: {measure(num_nodes, sampling, steps):6.1f} microseconds a step")


if __name__ == "__main__":
    main()
