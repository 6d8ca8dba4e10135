"""Measure whole passes of the native ops: rows x context x format, prefill, a batch, sampling.

The network has a real model's shapes and random weights: time does not depend on their values. Beside each time
stands the fraction of the memory bandwidth that it reached: a streaming read of the same bytes (weights and KV), taken
between the passes of the same row, over the pass. Times are medians of interleaved repeats with their [min - max].

    python -m benchmarks.ops [--formats Q4_1,BF16] [--model smollm2-135m] [--threads 2] [--kv bf16] [--quick]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from outpace import models
from outpace.models import Transformer, normalise
from outpace.models.select import tensors
from outpace.ops.formats import BLOCKS, row_bytes
from outpace.ops.native import NativeOps
from outpace.ops.sampling import SamplingRows
from outpace.types import KVFormat, RawTensor, SamplingParams, Segment

BLOCK = 32

COMMON = {"max_position_embeddings": 8192, "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "rope_theta": 1e5}

# Shapes of known models, and of one to try a script with. The embedding, which is the output matrix too, has its own
# format as in their GGUF files.
MODELS = {
    "smollm2-135m": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "qwen2.5-1.5b": {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
    "tiny": {
        "model_type": "llama",
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
OUTPUT_FORMAT = {"Q4_0": "Q8_0", "Q4_1": "Q8_0", "Q5_0": "Q8_0", "Q5_1": "Q8_0", "Q4_K": "Q6_K", "Q5_K": "Q6_K"}
OUTPUT_FORMAT |= {"Q2_K": "Q6_K", "Q3_K": "Q6_K", "IQ4_XS": "Q6_K", "IQ4_NL": "Q8_0", "MXFP4": "Q8_0"}
SCALES = {  # where a block keeps its half floats; else 0 and 2
    **{"Q6_K": (208,), "Q8_0": (0,), "Q4_0": (0,), "Q5_0": (0,)},
    **{"Q2_K": (80, 82), "Q3_K": (108,), "IQ4_NL": (0,), "IQ4_XS": (0,), "MXFP4": ()},
}


def random_tensor(name: str, format: str, shape: tuple[int, ...], seed: int = 0) -> RawTensor:
    """Return a tensor of random numbers of a sensible size, as a file stores it."""
    rng = np.random.default_rng(seed)
    rows, width = int(np.prod(shape[:-1])), shape[-1]
    if BLOCKS[format].size == 1:
        values = (0.05 * rng.standard_normal((rows, width))).astype(np.float16 if format == "F16" else np.float32)
        bits = (values.view(np.uint32) >> 16).astype(np.uint16) if format == "BF16" else values
        return RawTensor(name, bits.view(np.uint8).reshape(rows, -1), format, shape)
    data = rng.integers(0, 256, (rows, row_bytes(name, format, width)), dtype=np.uint8)
    blocks = data.reshape(rows, -1, BLOCKS[format].bytes)
    if format == "MXFP4":
        blocks[..., 0] = 121  # its exponent: 2^-7
    for offset in SCALES.get(format, (0, 2)):
        blocks[..., offset : offset + 2] = np.array([2e-3 / BLOCKS[format].size * 32], np.float16).view(np.uint8)
    return RawTensor(name, data, format, shape)


class Bench:
    """A network of random weights with a cache, and the bandwidth probe."""

    def __init__(self, model: str, format: str, kv: KVFormat, ops: NativeOps, num_blocks: int, repeats: int) -> None:
        config = normalise(MODELS[model] | COMMON, model)
        packed = {tensor.name: tensor for tensor in _tensors(config, format)}
        self.bytes = sum(t.data.nbytes for t in packed.values())
        self.ops, self.repeats = ops, repeats
        self.model: Transformer = models.build(config, packed, ops)
        self.spec = self.model.spec(kv)
        self.kv = ops.kv_alloc(self.spec, num_blocks)

    def forward(self, *segments: Segment) -> object:
        return self.model.forward(self.ops.plan(segments, BLOCK), self.kv)[0]

    def measure(self, run: Callable[[], object], num_bytes: int) -> tuple[list[float], float]:
        """Return the seconds of each repeat, and the median seconds of a streaming read in between."""
        times, reads = [], []
        run()
        for _ in range(self.repeats):
            reads.append(num_bytes / 1e9 / self.ops.read_bandwidth(num_bytes, 2)[1])
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return times, statistics.median(reads)

    def report(self, label: str, run: Callable[[], object], num_bytes: int, tokens: int) -> None:
        """Print a row: time, its spread, tokens per second, the bandwidth and the fraction of it that was reached."""
        times, read = self.measure(run, num_bytes)
        median = statistics.median(times)
        print(
            f"  {label:28} {median * 1e3:8.2f} ms [{min(times) * 1e3:.2f} - {max(times) * 1e3:.2f}]"
            f" {tokens / median:9.0f} tok/s   read {num_bytes / read / 1e9:5.1f} GB/s, reached {read / median:4.0%}"
        )


def _tensors(config: dict[str, Any], format: str) -> Iterator[RawTensor]:
    for tensor in tensors(config):
        of_vocabulary = tensor.shape == (config["vocab_size"], config["hidden_size"])
        kind = "F32" if len(tensor.shape) == 1 else OUTPUT_FORMAT.get(format, format) if of_vocabulary else format
        yield random_tensor(tensor.name, kind, tensor.shape)


def draft(table: list[int], context: int, rows: int) -> Segment:
    """Return one pending token and a chain of rows - 1 draft nodes after `context` committed tokens."""
    return Segment(table, context, [7] * rows, list(range(-1, rows - 2)) if rows > 1 else [], num_scored=rows)


def run_format(args: argparse.Namespace, format: str) -> None:
    """Print all rows of one format."""
    contexts = (0, 512) if args.quick else (0, 512, 4096)
    counts = (1, 8) if args.quick else (1, 2, 4, 8, 16, 32, 64)
    prompt, num_requests = 1024, 32
    num_blocks = max((contexts[-1] + 64) // BLOCK + 1, 5 * num_requests)
    bench = Bench(args.model, format, args.kv, NativeOps(args.threads), num_blocks, args.repeats)
    table = list(range(num_blocks))
    print(
        f"{args.model} {format}, KV {args.kv}: {bench.bytes / 1e6:.0f} MB, {bench.ops.threads} threads, {bench.ops.isa}"
    )
    for start in range(0, contexts[-1], 512):
        bench.forward(Segment(table, start, [7] * 512, num_scored=0))
    for context in contexts:
        kv_bytes = context * bench.spec.bytes_per_token
        for rows in counts:
            segment = draft(table, context, rows)
            label = f"{rows} rows, context {context}"
            bench.report(label, partial(bench.forward, segment), bench.bytes + kv_bytes, rows)
    text = Segment(table, 0, [7] * prompt)
    bench.report(f"prefill, {prompt} tokens", partial(bench.forward, text), bench.bytes, prompt)
    requests = [Segment(table[5 * i : 5 * i + 5], 128, [7]) for i in range(num_requests)]
    kv_bytes = num_requests * 128 * bench.spec.bytes_per_token
    bench.report(
        f"batch of {num_requests}, context 128", partial(bench.forward, *requests), bench.bytes + kv_bytes, num_requests
    )
    size = bench.model.config.vocab_size
    logits = bench.ops.array(np.random.default_rng(0).normal(0, 3, (1, size)).astype(np.float32))  # as peaked as text's
    for name, params in {
        "greedy": SamplingParams(),
        "temperature 0.8": SamplingParams(temperature=0.8),
        "temperature 0.8, top-p 0.95": SamplingParams(temperature=0.8, top_p=0.95),
    }.items():
        sampling = SamplingRows()
        sampling.add(params, 1, 0, [1])
        times, _ = bench.measure(partial(bench.ops.sample, logits, sampling.build()), 4096)
        print(f"  sample, {name:28} {statistics.median(times) * 1e6:8.1f} us")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the formats that were asked for, one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default="Q4_1,Q4_0,Q8_0,BF16", help=f"of {', '.join(BLOCKS)}")
    parser.add_argument("--model", default="smollm2-135m", choices=MODELS)
    parser.add_argument("--threads", type=int, default=None, help="default: physical cores")
    parser.add_argument("--kv", default="bf16", choices=("f32", "bf16", "int8"))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="fewer rows and contexts")
    args = parser.parse_args(arguments)
    for format in args.formats.split(","):
        run_format(args, format)


if __name__ == "__main__":
    main()
