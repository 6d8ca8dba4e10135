"""Read a trained drafter's checkpoint: one GGUF file of the architecture "outpace-drafter".

    drafter.kind                 whose network it is, such as "eagle"
    drafter.target.name          whom it was trained for, for people
    drafter.target.fingerprint   that file's `Checkpoint.fingerprint`, in hex
    drafter.target.vocabulary    `Tokenizer.fingerprint`
    drafter.target.model_type, .vocab_size, .width, .num_layers
    drafter.target.adapter       of a target that was tuned beside its heads (Medusa-2): its adapter's
                                 `AdapterCheckpoint.fingerprint`, in hex
    drafter.*                    the other entries belong to the kind: its network's file (`models`) reads them

Matrices in any format that the target's may have; norms in F32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outpace.errors import UsageError
from outpace.types import RawTensor
from outpace.weights.gguf import GGUFFile
from outpace.weights.trained import DrafterTarget, Entries, open_gguf

ARCHITECTURE = "outpace-drafter"


@dataclass(frozen=True, slots=True)
class DrafterCheckpoint:
    """A drafter as it lies on disk."""

    path: Path
    kind: str
    target_name: str
    target_fingerprint: str  # of the very file, in hex
    target: DrafterTarget
    entries: Entries  # without "drafter."
    tensors: Mapping[str, RawTensor]
    layout: str = "Outpace"  # whose words the file is in
    gguf: Mapping[str, Any] | None = None  # metadata with the target's tokenizer, where the layout has it there

    @property
    def tuned_by(self) -> str | None:
        """The fingerprint, in hex, of the adapter that its target was tuned by beside it; None: by none."""
        return self.entries.text("target.adapter") if "target.adapter" in self.entries.raw else None

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors, as stored."""
        return sum(tensor.data.nbytes for tensor in self.tensors.values())

    @property
    def num_parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    def check_target(self, name: str, target: DrafterTarget) -> None:
        """Raise UsageError, with the reason, if the drafter was made for another kind of model."""
        if reasons := self.target.mismatches(target):
            raise UsageError(
                f"the drafter {self.path} was made for {self.target_name} and cannot draft for {name}: "
                f"{'; '.join(reasons)}. Give a drafter of this model, or none"
            )


def open_drafter(path: Path) -> DrafterCheckpoint:
    """Return the drafter in a file of ours.

    Raises UsageError for what is no such file, WeightsError for a malformed one. `outpace.drafters.layouts` opens
    those of others too.
    """
    return from_gguf(open_gguf(path, ARCHITECTURE, "drafter"))


def from_gguf(file: GGUFFile) -> DrafterCheckpoint:
    """Return the drafter that a GGUF file of our architecture holds; raises WeightsError for a malformed one."""
    entries = Entries.of(file, "drafter.")
    name, fingerprint = entries.text("target.name"), entries.text("target.fingerprint")
    target = DrafterTarget.read(entries)
    return DrafterCheckpoint(file.path, entries.text("kind"), name, fingerprint, target, entries, file.tensors)
