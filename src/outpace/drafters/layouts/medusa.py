"""Medusa as its original repository publishes it: `medusa_lm_head.pt` or .safetensors beside a config.json.

A head's tensors are `K.0.linear.weight`, `K.0.linear.bias` (its residual block) and `K.1.weight` (rows of its own, of
the whole vocabulary). The config says how many heads there are, not always rightly, so the tensors are counted. It does
not say how often the heads are right, which decides what tree is drafted: `_ACCURACIES` stand for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from outpace.drafters.layouts.verifier import UNNAMED
from outpace.errors import WeightsError
from outpace.types import RawTensor
from outpace.weights.drafter import DrafterCheckpoint
from outpace.weights.trained import DrafterTarget, Entries
from outpace.weights.values import Values

KEY = "medusa_num_heads"
SAFETENSORS, PICKLE = "medusa_lm_head.safetensors", "medusa_lm_head.pt"
_PREFIX = "medusa_head."
_MOST_HEADS = 16
_NAMES = {"0.linear.weight": "w", "0.linear.bias": "b", "1.weight": "head"}

# How often a head's likeliest token comes, by the head, and how much rarer its further ones are: round numbers, not
# measured. They only choose which guesses a tree has; what these bring is then learned as for every drafter.
_FIRST = (0.6, 0.45, 0.35, 0.3, 0.25)
_RANKS = (1.0, 0.2, 0.09, 0.05, 0.035, 0.025, 0.02, 0.015)


def open_medusa(folder: Path, raw: Mapping[str, Any], found: Mapping[str, RawTensor]) -> DrafterCheckpoint:
    """Return the drafter in a folder; raises WeightsError for what is malformed or no network that we have."""
    source = Values(raw, str(folder / "config.json"))
    layers = source.count("medusa_num_layers", 1 << 10, minimum=0, absent=1)
    if layers != 1:
        raise source.error("medusa_num_layers", f"is {layers}: only heads of one residual block are supported")
    tensors = _renamed(found, str(folder))
    num_heads = len([name for name in tensors if name.startswith("w.")])
    vocab_size, width = tensors["head.0"].shape if len(tensors["head.0"].shape) == 2 else (0, 0)
    if not vocab_size:
        raise WeightsError(f"{folder}: tensor '0.1.weight' must have two dimensions, has {tensors['head.0'].shape}")
    accuracies = [_FIRST[min(head, len(_FIRST) - 1)] * rank for head in range(num_heads) for rank in _RANKS]
    entries = {
        **{"num_heads": num_heads, "unembedding": "own", "accuracies": accuracies},
        **{"num_fixed": vocab_size, "head_tokens": tuple(range(vocab_size))},
    }
    target = DrafterTarget(None, None, vocab_size, width, None)
    name = source.text("base_model_name_or_path") or UNNAMED
    return DrafterCheckpoint(
        folder, "medusa", name, "", target, Entries(entries, source.where), tensors, layout="Medusa"
    )


def _renamed(found: Mapping[str, RawTensor], where: str) -> dict[str, RawTensor]:
    tensors: dict[str, RawTensor] = {}
    for name, tensor in found.items():
        number, _, rest = name.removeprefix(_PREFIX).partition(".")
        if rest not in _NAMES or not (number.isascii() and number.isdigit() and int(number) < _MOST_HEADS):
            raise WeightsError(f"{where}: tensor {name!r} has no place in the heads of Medusa")
        tensors[f"{_NAMES[rest]}.{int(number)}"] = replace(tensor, name=name)
    num_heads = 1 + max((int(name.partition(".")[2]) for name in tensors), default=0)
    for head in range(num_heads):
        for rest, ours in _NAMES.items():
            if f"{ours}.{head}" not in tensors:
                raise WeightsError(f"{where}: tensor '{head}.{rest}' is missing: fetch the drafter again")
    return tensors
