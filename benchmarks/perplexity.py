"""Measure what rounding costs: perplexity of a text under the native ops, relative to the float32 reference.

Teacher-forced over the built-in English prompts (or --text FILE), in chunks as prefill does it; also the
Kullback-Leibler divergence of each token's distribution from the reference's, and how often the top token agrees.

    python -m benchmarks.perplexity [-m MODEL] [--tokens 2000] [-o FOLDER]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import outpace
from outpace.measure.bench.files import write_json
from outpace.measure.prompts import load_prompts
from outpace.measure.provenance import provenance
from outpace.types import Segment

CHUNK = 128


def log_probs(lm: outpace.LanguageModel, tokens: list[int]) -> NDArray[np.float64]:
    """Return the log-softmax after every token but the last, [n - 1, V]."""
    runner = lm.runner
    size = runner.cache.block_size
    blocks = list(range(-(-len(tokens) // size)))
    kv = runner.ops.kv_alloc(runner.cache.spec, len(blocks))
    pieces = []
    for start in range(0, len(tokens) - 1, CHUNK):
        piece = tokens[start : min(start + CHUNK, len(tokens) - 1)]
        plan = runner.ops.plan([Segment(blocks, start, piece, num_scored=len(piece))], size)
        x = runner.ops.numpy(runner.model.forward(plan, kv)[0]).astype(np.float64)
        x -= x.max(axis=1, keepdims=True)
        pieces.append(x - np.log(np.exp(x).sum(axis=1, keepdims=True)))
    return np.concatenate(pieces)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="smollm2-135m")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("-o", "--output", type=Path, help="folder for perplexity.json")
    args = parser.parse_args(arguments)

    reference = outpace.load(args.model, ops="reference", kv="f32")
    prompts = [prompt.text for prompt in load_prompts(None)]
    text = args.text.read_text(encoding="utf-8") if args.text else "\n\n".join(prompts)
    tokens = reference.tokenizer.encode(text)[: args.tokens]
    truth = log_probs(reference, tokens)
    places = np.arange(len(tokens) - 1), np.array(tokens[1:])
    base = float(np.exp(-truth[places].mean()))
    rows: list[dict[str, Any]] = [{"ops": "reference", "kv": "f32", "perplexity": base}]
    for kv in ("f32", "bf16", "int8"):
        lm = outpace.load(args.model, ops="native", kv=kv)
        probs = log_probs(lm, tokens)
        perplexity = float(np.exp(-probs[places].mean()))
        rows.append(
            {
                "ops": "native",
                "kv": kv,
                "perplexity": perplexity,
                "change_percent": 100 * (perplexity / base - 1),
                "divergence_nats": float((np.exp(truth) * (truth - probs)).sum(axis=1).mean()),
                "top_1_agreement": float((truth.argmax(axis=1) == probs.argmax(axis=1)).mean()),
            }
        )
    for row in rows:
        print(
            "  ".join(f"{key} {value:.4f}" if isinstance(value, float) else f"{value:9}" for key, value in row.items())
        )
    if args.output:
        report = {"kind": "perplexity", "provenance": provenance(lm), "tokens": len(tokens), "rows": rows}
        write_json(args.output / "perplexity.json", report)


if __name__ == "__main__":
    main()
