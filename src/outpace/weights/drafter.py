"""Read a trained drafter's checkpoint: one GGUF file of the architecture "outpace-drafter".

    drafter.kind                 "eagle"
    drafter.target.name          whom it was trained for, for people
    drafter.target.fingerprint   that file's `Checkpoint.fingerprint`, in hex
    drafter.target.vocabulary    `Tokenizer.fingerprint`
    drafter.target.model_type, .vocab_size, .width, .num_layers
    drafter.taps, .num_heads, .num_kv_heads, .head_width, .num_fixed, .head_tokens     as in `EagleConfig`

Matrices in any format that the target's may have; norms in F32.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outpace.errors import UsageError, WeightsError
from outpace.types import RawTensor
from outpace.weights.gguf import read_gguf

ARCHITECTURE = "outpace-drafter"
KINDS = ("eagle",)


@dataclass(frozen=True, slots=True)
class DrafterTarget:
    """For whom a drafter was made: everything that a target must share with that model."""

    vocabulary: str  # what every token id stands for (`Tokenizer.fingerprint`)
    model_type: str
    vocab_size: int
    width: int
    num_layers: int


@dataclass(frozen=True, slots=True)
class DrafterCheckpoint:
    """A drafter as it lies on disk."""

    path: Path
    kind: str
    target_name: str
    target_fingerprint: str  # of the very file, in hex
    target: DrafterTarget
    numbers: Mapping[str, Any]  # the other entries, without "drafter."
    tensors: Mapping[str, RawTensor]

    def check_target(self, name: str, target: DrafterTarget) -> None:
        """Raise UsageError, with the reason, if the drafter was made for another kind of model."""
        made, given = self.target, target
        reasons = [
            f"its {field.replace('_', ' ')} is {getattr(given, field)!r}, must be {getattr(made, field)!r}"
            for field in ("model_type", "width", "num_layers", "vocab_size")
            if getattr(made, field) != getattr(given, field)
        ]
        if not reasons and made.vocabulary != given.vocabulary:
            reasons.append("its token ids stand for other tokens")
        if reasons:
            raise UsageError(
                f"the drafter {self.path} was made for {self.target_name} and cannot draft for {name}: "
                f"{'; '.join(reasons)}. Give a drafter of this model, or none"
            )


def open_drafter(path: Path) -> DrafterCheckpoint:
    """Return the drafter in a file; raises UsageError for what is no drafter, WeightsError for a malformed one."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file: give a drafter's checkpoint (GGUF)")
    file = read_gguf(path)
    if file.metadata.get("general.architecture") != ARCHITECTURE:
        raise UsageError(
            f"{path}: is no drafter: general.architecture is {file.metadata.get('general.architecture')!r}, "
            f"must be {ARCHITECTURE!r}"
        )
    entries = _Entries(path, file.metadata)
    kind = entries.text("kind")
    if kind not in KINDS:
        raise WeightsError(f"{path}: drafter.kind is {kind!r}, supported are {', '.join(KINDS)}")
    target = DrafterTarget(
        entries.text("target.vocabulary"),
        entries.text("target.model_type"),
        entries.count("target.vocab_size"),
        entries.count("target.width"),
        entries.count("target.num_layers"),
    )
    numbers = {
        **{name: entries.count(name) for name in ("num_heads", "num_kv_heads", "head_width", "num_fixed")},
        **{name: entries.counts(name) for name in ("taps", "head_tokens")},
    }
    _check(path, target, numbers)
    name, fingerprint = entries.text("target.name"), entries.text("target.fingerprint")
    return DrafterCheckpoint(path, kind, name, fingerprint, target, numbers, file.tensors)


def _check(path: Path, target: DrafterTarget, numbers: Mapping[str, Any]) -> None:
    tokens, taps = numbers["head_tokens"], numbers["taps"]
    if not tokens or len(set(tokens)) < len(tokens) or max(tokens) >= target.vocab_size:
        raise WeightsError(f"{path}: drafter.head_tokens must be different ids in [0, {target.vocab_size})")
    if not 1 <= numbers["num_fixed"] <= len(tokens):
        raise WeightsError(f"{path}: drafter.num_fixed must be in [1, {len(tokens)}], is {numbers['num_fixed']}")
    if not taps or list(taps) != sorted(set(taps)) or not 1 <= taps[0] <= taps[-1] <= target.num_layers:
        raise WeightsError(f"{path}: drafter.taps must be different layers in [1, {target.num_layers}], are {taps}")
    if numbers["num_kv_heads"] < 1 or numbers["num_heads"] % numbers["num_kv_heads"] or numbers["num_heads"] < 1:
        raise WeightsError(f"{path}: drafter.num_heads must be a positive multiple of drafter.num_kv_heads")


class _Entries:
    """A file's metadata under "drafter.", not believed."""

    def __init__(self, path: Path, metadata: Mapping[str, Any]) -> None:
        self._path, self._metadata = path, metadata

    def text(self, name: str) -> str:
        value = self._metadata.get(f"drafter.{name}")
        if not isinstance(value, str):
            raise self._error(name, "a string", value)
        return value

    def count(self, name: str) -> int:
        value = self._metadata.get(f"drafter.{name}")
        if type(value) is not int or value < 0:
            raise self._error(name, "an integer of at least 0", value)
        return value

    def counts(self, name: str) -> tuple[int, ...]:
        value = self._metadata.get(f"drafter.{name}")
        if not isinstance(value, array) or not all(type(number) is int and number >= 0 for number in value):
            raise self._error(name, "a list of integers of at least 0", value)
        return tuple(value)

    def _error(self, name: str, wanted: str, value: Any) -> WeightsError:
        return WeightsError(f"{self._path}: metadata drafter.{name} must be {wanted}, is {value!r:.60}")
