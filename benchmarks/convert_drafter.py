"""Convert a checkpoint of the feasibility run (eagle, medusa or block) into a drafter file for the default model.

    python -m benchmarks.convert_drafter KIND CHECKPOINT.safetensors RANKS.safetensors OUT.gguf [PROMPTS.jsonl]

CHECKPOINT: tensors in float16, a trained head as head.q8 and head.scale. RANKS: a file whose `vocab_rank` says which
token each row of the head stands for. The networks there read the final norm's output with its weight, where they mix
taps, and without it, as the residual; eagle and block read both without it here, so the weight is folded into the
matrices. All matrices become Q8_0, which was measured to cost nothing in acceptance.

PROMPTS (medusa): one {"prompt": ...} a line; the heads' accuracies are measured on the model's greedy answers to them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

import outpace
from outpace import LanguageModel
from outpace.api.language_model import Message
from outpace.models.checkpoint import open_checkpoint
from outpace.ops.formats import dequantise
from outpace.runner import ScheduledSequence
from outpace.train.export import target_entries, write_drafter
from outpace.train.target import identity_of
from outpace.types import Options, Request

TAPS, NUM_HEADS, NUM_KV_HEADS, HEAD_WIDTH, NUM_FIXED = (6, 14, 22, 30), 9, 3, 64, 4096
SIZES = {"taps": list(TAPS), "num_heads": NUM_HEADS, "num_kv_heads": NUM_KV_HEADS, "head_width": HEAD_WIDTH}
NUM_CHOICES = 10  # ranks of a medusa head whose accuracy is measured
ANSWER = 96  # tokens of an answer that it is measured on

Floats = NDArray[np.float32]
Converted = tuple[dict[str, Any], dict[str, Floats]]  # entries, tensors


def eagle(given: dict[str, Floats], final_norm: Floats) -> Converted:
    """Return an eagle's entries and tensors under our names."""
    gate, up = np.split(given["gu"], 2)
    norms = {"token_norm": "ne", "feature_norm": "ng", "mlp_norm": "n2", "head_norm": "hn"}
    return SIZES, {
        "fc": _folded(given["fc"], final_norm),
        **{name: given[name] for name in ("wq", "wk", "wv", "wo")},
        **{"gate": gate, "up": up, "down": given["dn"], "head": given["head.q8"] * given["head.scale"]},
        **{name: given[old] for name, old in norms.items()},
    }


def block(given: dict[str, Floats], final_norm: Floats) -> Converted:
    """Return a block drafter's entries and tensors under our names."""
    num_layers = sum(name.startswith("wq") for name in given)
    tensors = {
        "fc": _folded(given["fc"], final_norm),
        "mask_fc": _folded(given["pf"], final_norm),
        **{"masks": given["mask"], "head": given["head.q8"] * given["head.scale"]},
        **{"context_norm": given["nc"], "token_norm": given["ne"], "head_norm": given["hn"]},
    }
    for i in range(num_layers):
        gate, up = np.split(given[f"gu{i}"], 2)
        tensors |= {f"{i}.{name}": given[f"{name}{i}"] for name in ("wq", "wk", "wv", "wo")}
        tensors |= {f"{i}.gate": gate, f"{i}.up": up, f"{i}.down": given[f"dn{i}"]}
        tensors |= {f"{i}.attn_norm": given[f"n1{i}"], f"{i}.mlp_norm": given[f"n2{i}"]}
    return {**SIZES, "num_layers": num_layers, "num_masks": len(given["mask"])}, tensors


def medusa(given: dict[str, Floats], head_tokens: Sequence[int], lm: LanguageModel, prompts: Path) -> Converted:
    """Return a medusa's entries and tensors under our names; its rows are the target's own."""
    num_heads = sum(name.startswith("w.") for name in given)
    output = dequantise(_output(lm)[1])[list(head_tokens)]
    ranks: list[list[int]] = [[] for _ in range(num_heads)]
    for answer, hidden in answers(lm, [json.loads(line)["prompt"] for line in prompts.read_text().splitlines()]):
        for k in range(num_heads):
            z = hidden @ given[f"w.{k}"].T + given[f"b.{k}"]
            logits = (hidden + z / (1 + np.exp(-z))) @ output.T
            ranks[k] += _ranks(logits[: len(answer) - 1 - k], answer[1 + k :], head_tokens)
    accuracies = [_accuracies(own) for own in ranks]
    entries = {"num_heads": num_heads, "unembedding": "target", "accuracies": [a for own in accuracies for a in own]}
    return entries, {name: given[name] for k in range(num_heads) for name in (f"w.{k}", f"b.{k}")}


def answers(lm: LanguageModel, prompts: Sequence[str]) -> Iterator[tuple[list[int], Floats]]:
    """Yield the model's greedy answers, and the final hidden state before each of their tokens, [T, D]."""
    chats: list[list[Message]] = [[{"role": "user", "content": prompt}] for prompt in prompts]
    tap = lm.config.num_layers + 1
    for chat, result in zip(chats, lm.generate(chats, max_new_tokens=ANSWER, strategy="none"), strict=True):
        asked = lm.tokenizer.encode_chat(chat)
        tokens = [*asked, *result.tokens]
        runner = lm.runner.scratch(-(-len(tokens) // 32) + 1)
        part = ScheduledSequence(runner.cache.open(()), Request.of(tokens, Options()), tokens, len(tokens))
        yield result.tokens, runner.ops.numpy(runner.forward([part], [tap]).hidden[tap])[len(asked) - 1 : -1]


def _ranks(logits: Floats, tokens: Sequence[int], head_tokens: Sequence[int]) -> list[int]:
    """Return the place of each token among a row's logits; NUM_CHOICES where it is further behind, or has no row."""
    row_of = {token: row for row, token in enumerate(head_tokens)}
    ranks = []
    for row, token in zip(logits, tokens, strict=True):
        column = row_of.get(token)
        ranks.append(NUM_CHOICES if column is None else min(int((row > row[column]).sum()), NUM_CHOICES))
    return ranks


def _accuracies(ranks: Sequence[int]) -> list[float]:
    """Return how often each rank was right, never rising."""
    shares = np.bincount(ranks, minlength=NUM_CHOICES + 1)[:NUM_CHOICES] / max(len(ranks), 1)
    return list(np.minimum.accumulate(shares).tolist())


def _folded(matrix: Floats, final_norm: Floats) -> Floats:
    """Return a matrix over all taps that takes the last one without the final norm's weight."""
    folded = matrix.copy()
    folded[:, -len(final_norm) :] *= final_norm
    return folded


def _output(lm: LanguageModel) -> tuple[str, Any]:
    tensors = open_checkpoint(lm.path).tensors
    name = "lm_head.weight" if "lm_head.weight" in tensors else "model.embed_tokens.weight"
    return name, tensors[name]


def main(kind: str, checkpoint: Path, ranks: Path, out: Path, prompts: Path | None = None) -> None:
    """Write the file for the default model."""
    lm = outpace.load()
    target = open_checkpoint(lm.path)
    given = {name: x.astype(np.float32) for name, x in load_file(checkpoint).items() if name != "vocab_rank"}
    head_tokens = load_file(ranks)["vocab_rank"].tolist()
    if kind == "medusa":
        if prompts is None:
            raise SystemExit("medusa: give PROMPTS.jsonl, on whose answers the heads' accuracies are measured")
        entries, tensors = medusa(given, head_tokens, lm, prompts)
    else:
        final_norm = dequantise(target.tensors["model.norm.weight"]).astype(np.float32)
        entries, tensors = {"eagle": eagle, "block": block}[kind](given, final_norm)
    given_for = target_entries(identity_of(lm, "SmolLM2-135M-Instruct, Q4_1"))
    write_drafter(
        out, {"kind": kind, **given_for, **entries, "num_fixed": NUM_FIXED, "head_tokens": head_tokens}, tensors, "Q8_0"
    )


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
