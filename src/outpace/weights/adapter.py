"""Read an adapter: low-rank changes to a model's matrices, as `outpace train` writes them.

One GGUF file of the architecture "outpace-adapter":

    adapter.kind                 "diffusion": fills masks; "jacobi", "medusa": another model, tuned to be
                                 guessed (by fixed points; by heads that were trained with it)
    adapter.context              "base": known tokens are computed without the adapter (diffusion);
                                 "adapted": with it, everywhere (jacobi, medusa)
    adapter.target.*             for whom it was made, as in a drafter's file (`drafter.py`)
    adapter.rank, adapter.scale  of y = W x + scale * B (A x)
    adapter.mask_token, .block, .shift   how it fills masks (`MaskFilling`); kind "diffusion" only. A mask token of
                                 vocab_size is none of the vocabulary's: its embedding is the tensor mask_embedding [D]
    model.layers.{i}.self_attn.{q,k,v,o}_proj.lora_a [rank, in], .lora_b [out, rank]
    model.layers.{i}.mlp.{gate,up,down}_proj.lora_a, .lora_b     any of these pairs may be missing
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from outpace.errors import UsageError
from outpace.types import MaskFilling, RawTensor
from outpace.weights.trained import DrafterTarget, Entries, open_gguf

ARCHITECTURE = "outpace-adapter"
KINDS = {"diffusion": "base", "jacobi": "adapted", "medusa": "adapted"}  # and the context that each has


@dataclass(frozen=True, slots=True)
class AdapterCheckpoint:
    """An adapter as it lies on disk. filling: how a model with it fills masks; None: it does not."""

    path: Path
    kind: str
    target_name: str
    target: DrafterTarget
    rank: int
    scale: float
    filling: MaskFilling | None
    tensors: Mapping[str, RawTensor]

    @property
    def is_always_on(self) -> bool:
        """Whether it changes known tokens too, so that a model with it is another model."""
        return KINDS[self.kind] == "adapted"

    @property
    def fingerprint(self) -> bytes:
        """32 bytes that tell adapters apart."""
        digest = hashlib.sha256(f"{self.kind} {self.rank} {self.scale}".encode())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.format} {tensor.shape}".encode() + tensor.data.tobytes())
        return digest.digest()

    def fingerprint_of(self, own: bytes) -> bytes:
        """Return the fingerprint of a model with the adapter; own: of the model without it."""
        return hashlib.sha256(own + self.fingerprint).digest() if self.is_always_on else own

    def check_target(self, name: str, target: DrafterTarget) -> None:
        """Raise UsageError, with the reason, if the adapter was made for another model."""
        if reasons := self.target.mismatches(target):
            raise UsageError(
                f"the adapter {self.path} was made for {self.target_name} and does not fit {name}: "
                f"{'; '.join(reasons)}. Give an adapter of this model, or none"
            )


def open_adapter(path: Path) -> AdapterCheckpoint:
    """Return the adapter in a file; UsageError for what is no such file, WeightsError for a malformed one."""
    file = open_gguf(path, ARCHITECTURE, "adapter")
    entries = Entries.of(file, "adapter.")
    kind = entries.choice("kind", tuple(KINDS), "")
    if entries.choice("context", tuple(KINDS.values()), KINDS[kind]) != KINDS[kind]:
        raise entries.error("context", f"must be {KINDS[kind]!r} for kind {kind!r}, is {entries.raw['context']!r}")
    target = DrafterTarget.read(entries)
    filling = _filling(entries, target, "mask_embedding" in file.tensors) if kind == "diffusion" else None
    rank = entries.count("rank")
    if rank < 1:
        raise entries.error("rank", "must be at least 1, is 0")
    return AdapterCheckpoint(
        path, kind, entries.text("target.name"), target, rank, entries.number("scale"), filling, file.tensors
    )


def _filling(entries: Entries, target: DrafterTarget, has_embedding: bool) -> MaskFilling:
    mask, block, shift = (entries.count(name) for name in ("mask_token", "block", "shift"))
    if mask >= target.vocab_size + has_embedding:
        raise entries.error("mask_token", f"must be in [0, {target.vocab_size}), is {mask}")
    if block < 1:
        raise entries.error("block", "must be at least 1, is 0")
    if shift > 1:
        raise entries.error("shift", f"must be 0 or 1, is {shift}")
    return MaskFilling(mask if mask < target.vocab_size else 0, block, shift)
