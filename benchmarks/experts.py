"""Measure a mixture of experts: one row against the bytes of its active experts at the memory's bandwidth.

The network has the proportions of a real model, fewer layers of it, a small vocabulary, and random weights. Runs take
turns in one process: a streaming read, a product of one row with one large matrix of the same format, a pass of one
row, and the experts of one layer with rows that choose independently. Each is put into GB/s of the bytes that it needs
(a pass: attention, router, output matrix, and the experts that a row chooses; rows together: those that they are
expected to choose), and into a part of the read's speed. Tokens and layers change from turn to turn, so that caches do
not hold what is needed. The best of each is there for machines that have other work.

    python -m benchmarks.experts [--format Q4_K] [--layers 6] [--threads 2] [--repeats 40]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np

from benchmarks.ops import BLOCK, COMMON, random_tensor
from outpace import models
from outpace.models import Transformer, normalise
from outpace.models.select import tensors
from outpace.ops.layers import Experts, Weight
from outpace.ops.native import NativeOps
from outpace.types import RawTensor, Segment

MODELS: dict[str, dict[str, Any]] = {
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe",
        "vocab_size": 4096,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
    },
    "tiny": {  # for the scripts' own tests
        **{"model_type": "qwen3_moe", "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16},
        **{"num_attention_heads": 4, "num_key_value_heads": 2},
        **{"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    },
}
CONTEXT = 64
ROWS = (1, 2, 4, 8, 16)


class Bench:
    """The network with a cache, and what its runs read."""

    def __init__(self, model: str, num_layers: int, format: str, ops: NativeOps) -> None:
        config = normalise(MODELS[model] | COMMON | {"num_hidden_layers": num_layers}, model)
        stored = {tensor.name: _random(tensor.name, tensor.shape, format) for tensor in tensors(config)}
        self.ops, self._rng = ops, np.random.default_rng(0)
        self.model: Transformer = models.build(config, stored, ops)
        self._table = list(range(1 + CONTEXT // BLOCK))
        self._kv = ops.kv_alloc(self.model.spec("bf16"), len(self._table))
        self._layers = itertools.cycle(self.model.layers)
        self.forward(0, CONTEXT)

    def forward(self, start: int = CONTEXT, rows: int = 1) -> None:
        """Run random tokens from a position on."""
        tokens = self._rng.integers(0, self.model.config.vocab_size, rows).tolist()
        self.model.forward(self.ops.plan([Segment(self._table, start, tokens)], BLOCK), self._kv)

    def run_experts(self, rows: int) -> None:
        """Run random rows through the experts of the next layer."""
        x = self._rng.standard_normal((rows, self.model.config.width), np.float32)
        self.ops.experts(self.ops.array(x), next(self._layers).handle)

    def expert_bytes(self, rows: int) -> float:
        """Return the bytes of a layer's router and of the experts that random rows are expected to choose."""
        own = cast(Experts, self.model.layers[0].parts.experts)
        each = sum(map(_bytes, (own.gate[0], own.up[0], own.down[0])))
        missed = (1 - own.num_chosen / len(own.gate)) ** rows
        return _bytes(own.router) + each * len(own.gate) * (1 - missed)

    def pass_bytes(self, rows: int) -> float:
        """Return the bytes of all that a pass reads."""
        parts = [layer.parts for layer in self.model.layers]
        attention = sum(_bytes(weight) for part in parts for weight in (part.wq, part.wk, part.wv, part.wo))
        return _bytes(self.model.output) + attention + len(parts) * self.expert_bytes(rows)


def _random(name: str, shape: tuple[int, ...], format: str) -> RawTensor:
    """Return a random tensor as it is stored: routers are floats, as in GGUF files."""
    return random_tensor(name, "F32" if len(shape) == 1 or name.endswith("mlp.gate.weight") else format, shape)


def _bytes(weight: Weight) -> int:
    return int(cast(Any, weight).num_bytes)


def timed(run: Callable[[], object]) -> float:
    """Return the seconds that a run takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def row(name: str, times: Sequence[float], num_bytes: float, reads: Sequence[float]) -> str:
    """Return what is printed of a run; reads: the speeds of streaming reads, in GB/s."""
    median, best = (num_bytes / 1e9 / t for t in (statistics.median(times), min(times)))
    return (
        f"  {name:28} {num_bytes / 1e6:6.1f} MB in {statistics.median(times) * 1e3:7.2f} ms:"
        f" {median:5.1f} GB/s, {median / statistics.median(reads):4.0%}"
        f"; best {min(times) * 1e3:7.2f} ms: {best:5.1f} GB/s, {best / max(reads):4.0%}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row for each kind of run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen3-30b-a3b", choices=MODELS)
    parser.add_argument("--format", default="Q4_K")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--threads", type=int, default=None, help="default: physical cores")
    parser.add_argument("--repeats", type=int, default=40)
    args = parser.parse_args(arguments)
    ops = NativeOps(args.threads)
    bench = Bench(args.model, args.layers, args.format, ops)
    width, active = bench.model.config.width, bench.pass_bytes(1)
    one = ops.pack(random_tensor("one", args.format, (width, width)))
    dense = ops.pack(random_tensor("dense", args.format, (int(active / _bytes(one) * width), width)))
    x = ops.array(np.ones((1, width), np.float32))
    print(
        f"{args.model}, {args.layers} layers, {args.format}: {ops.threads} threads, {ops.isa}, "
        f"{active / 1e6:.0f} MB active of {bench.pass_bytes(10**6) / 1e6:.0f} MB"
    )
    runs: dict[str, Callable[[], object]] = {"product of one row": partial(ops.linear, x, dense)}
    runs["pass of one row"] = bench.forward
    needed: dict[str, float] = {"product of one row": _bytes(dense), "pass of one row": active}
    for rows in ROWS:
        name = f"experts of a layer, {rows} rows"
        runs[name], needed[name] = partial(bench.run_experts, rows), bench.expert_bytes(rows)
    times, reads = in_turns(runs, partial(ops.read_bandwidth, int(active), 1), args.repeats)
    print(f"  streaming read: {statistics.median(reads):.1f} GB/s, best {max(reads):.1f}")
    for name in runs:
        print(row(name, times[name], needed[name], reads))
    own = times["pass of one row"]
    print(f"  tokens/s with {args.layers} layers: {1 / statistics.median(own):.1f}, best {1 / min(own):.1f}")


def in_turns(
    runs: Mapping[str, Callable[[], object]], read: Callable[[], list[float]], repeats: int
) -> tuple[dict[str, list[float]], list[float]]:
    """Return the seconds of each run and the speed of a read in each of `repeats` turns, after one that is left out."""
    turns = [([timed(run) for run in runs.values()], read()[0]) for _ in range(repeats + 1)][1:]
    return {name: [times[i] for times, _ in turns] for i, name in enumerate(runs)}, [speed for _, speed in turns]


if __name__ == "__main__":
    main()
