"""Write what was learned: an adapter as a GGUF file beside its model, or all weights as a Hugging Face folder.

    adapter.kind               "diffusion" or "jacobi"
    adapter.target.*           for whom, as in a drafter's file
    adapter.rank, .scale       y = W x + scale * B (A x)
    adapter.context            "base": tokens that are finished are computed with the adapter off; "adapted": on
    adapter.block, .shift      of diffusion: rows of a block, and whether row i predicts token i + 1
    adapter.mask_token         vocab_size: `mask_embedding` [D] stands for a masked slot

Tensors: `model.layers.{i}.self_attn.{q,k,v,o}_proj.lora_{a,b}`, `model.layers.{i}.mlp.{gate,up,down}_proj.lora_{a,b}`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from outpace.ops.formats import dequantise
from outpace.train.adapt.learner import Learner
from outpace.train.adapt.settings import AdaptSettings
from outpace.train.export import target_entries, write_gguf
from outpace.train.target import TargetIdentity
from outpace.weights.gguf import read_gguf

ARCHITECTURE, PREFIX = "outpace-adapter", "adapter."


def export_adapter(learner: Learner, settings: AdaptSettings, identity: TargetIdentity, path: Path) -> None:
    """Write an adapter's file, whole or not at all; matrices in the settings' format, vectors in F32.

    A matrix whose rows the format cannot hold (a rank that is no multiple of 32) is written in F16.
    """
    adapter = learner.adapter
    assert adapter is not None
    entries: dict[str, Any] = {
        "kind": settings.kind,
        **target_entries(identity),
        "rank": adapter.rank,
        "scale": adapter.scale,
        "context": "adapted" if settings.is_clean_adapted else "base",
    }
    if settings.kind == "diffusion":
        entries |= {"block": settings.block, "shift": settings.shift, "mask_token": learner.mask_token}
    tensors = {name: own.detach().float().cpu().numpy() for name, own in learner.parameters.items()}
    write_gguf(
        path, ARCHITECTURE, {f"{PREFIX}{name}": value for name, value in entries.items()}, tensors, settings.format
    )


def read_adapter(path: Path) -> dict[str, Tensor]:
    """Return the matrices of an adapter's file, with the numbers that they have after rounding."""
    file = read_gguf(path)
    return {
        name: torch.from_numpy(dequantise(own).astype("float32")).reshape(own.shape)
        for name, own in file.tensors.items()
    }
