"""Write a drafter's file, as `weights/drafter.py` reads it, and read one back into a training network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from outpace.errors import UsageError, one_of
from outpace.ops.formats import dequantise
from outpace.train.build import build_network
from outpace.train.networks.network import DraftNetwork
from outpace.train.target import FrozenTarget, TargetIdentity
from outpace.weights.drafter import ARCHITECTURE, open_drafter

FORMATS = ("Q8_0", "Q4_1", "F16", "F32")


def export(network: DraftNetwork, identity: TargetIdentity, path: Path, format: str = "Q8_0") -> None:
    """Write the network's file, whole or not at all; matrices in `format`, vectors in F32.

    A matrix whose rows the format cannot hold (a width that is no multiple of its block) is written in F16.
    """
    tensors = {name: x.detach().float().cpu().numpy() for name, x in network.named_parameters()}
    entries = {"kind": network.kind, **target_entries(identity), **network.numbers()}
    write_drafter(path, entries, tensors, format)


def target_entries(identity: TargetIdentity) -> dict[str, Any]:
    """Return the entries that say for whom a drafter was made."""
    traits = identity.traits
    tuned = {} if identity.adapter is None else {"target.adapter": identity.adapter}
    return {
        **tuned,
        "target.name": identity.name,
        "target.fingerprint": identity.fingerprint,
        **{
            f"target.{name}": getattr(traits, name)
            for name in ("vocabulary", "model_type", "vocab_size", "width", "num_layers")
        },
    }


def write_drafter(
    path: Path, entries: Mapping[str, Any], tensors: Mapping[str, NDArray[np.float32]], format: str
) -> None:
    """Write a drafter's file: entries without "drafter."; texts, counts, numbers, and lists of counts."""
    write_gguf(path, ARCHITECTURE, {f"drafter.{name}": value for name, value in entries.items()}, tensors, format)


def write_gguf(
    path: Path, architecture: str, entries: Mapping[str, Any], tensors: Mapping[str, NDArray[np.float32]], format: str
) -> None:
    """Write a GGUF file, whole or not at all: entries (texts, flags, counts, numbers, lists of one kind) and tensors.

    Matrices in `format`, or in F16 where their rows are no multiple of its block; vectors in F32.
    """
    one_of("format", format, FORMATS)
    new = path.with_name(f"{path.name}.new")
    writer = gguf.GGUFWriter(new, architecture)
    for name, value in entries.items():
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        else:
            writer.add_array(name, list(value))
    for name, x in tensors.items():
        kind = _kind(x, format)
        if kind is gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, np.ascontiguousarray(x, np.float32))
        else:
            writer.add_tensor(name, gguf.quants.quantize(x, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with new.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(new, path)


def _kind(x: NDArray[np.float32], format: str) -> gguf.GGMLQuantizationType:
    kinds = gguf.GGMLQuantizationType
    if x.ndim == 1:
        return kinds.F32
    kind = kinds[format]
    return kind if x.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 else kinds.F16


def read_network(path: Path, kind: str, target: FrozenTarget) -> DraftNetwork:
    """Return the training network of a drafter's file, with the numbers that its tensors have after rounding.

    Raises UsageError, with the reason, for a drafter of another kind or of another target.
    """
    file = open_drafter(path)
    file.check_target(target.identity.name, target.identity.traits)
    if file.kind != kind:
        raise UsageError(f"{path}: is a drafter of kind {file.kind}, cannot go on as {kind}: train {file.kind}")
    tensors: dict[str, Tensor] = {
        name: torch.from_numpy(dequantise(tensor).astype(np.float32)).reshape(tensor.shape).to(target.device)
        for name, tensor in file.tensors.items()
    }
    return build_network(kind, file.entries, tensors, target)
