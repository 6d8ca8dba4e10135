"""Write what was learned: an adapter as a GGUF file beside its model, or all weights as a Hugging Face folder.

    adapter.kind               "diffusion", "jacobi" or "medusa" (a target that was tuned beside its heads)
    adapter.target.*           for whom, as in a drafter's file
    adapter.rank, .scale       y = W x + scale * B (A x)
    adapter.context            "base": tokens that are finished are computed with the adapter off; "adapted": on
    adapter.block, .shift      of diffusion: rows of a block, and whether row i predicts token i + 1
    adapter.mask_token         vocab_size: `mask_embedding` [D] stands for a masked slot

Tensors: `model.layers.{i}.self_attn.{q,k,v,o}_proj.lora_{a,b}`, `model.layers.{i}.mlp.{gate,up,down}_proj.lora_{a,b}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from outpace.models.checkpoint import Checkpoint
from outpace.ops.formats import dequantise
from outpace.train.adapt.learner import Learner
from outpace.train.adapt.settings import AdaptSettings
from outpace.train.distill.folder import Shape, student_config, write_folder
from outpace.train.export import target_entries, write_gguf
from outpace.train.networks.lora import Adapter
from outpace.train.state import load_tensors, save_tensors
from outpace.train.target import TargetIdentity
from outpace.weights.adapter import ARCHITECTURE, KINDS
from outpace.weights.gguf import read_gguf

PREFIX = "adapter."
EMPTY: Mapping[str, Any] = MappingProxyType({})


def export_adapter(learner: Learner, settings: AdaptSettings, identity: TargetIdentity, path: Path) -> None:
    """Write an adapter's file, whole or not at all; matrices in the settings' format, vectors in F32.

    A matrix whose rows the format cannot hold (a rank that is no multiple of 32) is written in F16.
    """
    assert learner.adapter is not None
    more: dict[str, Any] = {}
    if settings.kind == "diffusion":
        more = {"block": settings.block, "shift": settings.shift, "mask_token": learner.mask_token}
    mask = {} if learner.mask is None else {"mask_embedding": learner.mask}
    write_adapter(path, settings.kind, learner.adapter, identity, settings.format, more, mask)


def write_adapter(
    path: Path,
    kind: str,
    adapter: Adapter,
    identity: TargetIdentity,
    format: str,
    more: Mapping[str, Any] = EMPTY,
    further: Mapping[str, Tensor] = EMPTY,
) -> None:
    """Write an adapter's file for a model. more: the kind's own entries. further: its tensors beside the matrices."""
    entries = {
        "kind": kind,
        **target_entries(identity),
        "rank": adapter.rank,
        "scale": adapter.scale,
        "context": KINDS[kind],
        **more,
    }
    numbers = {name: own.detach().float().cpu().numpy() for name, own in {**adapter.tensors(), **further}.items()}
    write_gguf(path, ARCHITECTURE, {f"{PREFIX}{name}": value for name, value in entries.items()}, numbers, format)


def write_result(learner: Learner, settings: AdaptSettings, identity: TargetIdentity, path: Path) -> None:
    """Write what was learned, as decoding will have it: an adapter's file, or all weights in float16."""
    if learner.adapter is not None:
        export_adapter(learner, settings, identity, path)
        return
    save_tensors(path, {name: own.detach().half().cpu() for name, own in learner.parameters.items()})


def read_result(path: Path) -> dict[str, Tensor]:
    """Return the numbers of a result's file, as they were rounded, in float32."""
    if path.suffix != ".gguf":
        return {name: own.float() for name, own in load_tensors(path).items()}
    file = read_gguf(path)
    return {
        name: torch.from_numpy(dequantise(own).astype("float32")).reshape(own.shape)
        for name, own in file.tensors.items()
    }


def write_model(folder: Path, checkpoint: Checkpoint, path: Path, settings: AdaptSettings, mask_token: int) -> None:
    """Write all weights of a result's file as a Hugging Face folder; its config has a key `outpace_diffusion`.

    checkpoint: the original, whose config and tokenizer it keeps.
    """
    count, width = checkpoint.config["num_hidden_layers"], checkpoint.config["intermediate_size"]
    config = student_config(checkpoint, Shape(tuple(range(count)), width))
    if settings.kind == "diffusion":
        config["outpace_diffusion"] = {"mask_token_id": mask_token, "block": settings.block, "shift": settings.shift}
    write_folder(folder, checkpoint, config, read_result(path))
