"""What the file of a drafter or an adapter says before a network is made of it: for whom it is, its configuration."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outpace.errors import UsageError, WeightsError
from outpace.weights.gguf import GGUFFile, read_gguf


@dataclass(frozen=True, slots=True)
class DrafterTarget:
    """For whom it was made: everything that a target must share with that model. None: its files do not say."""

    vocabulary: str | None  # what every token id stands for (`Tokenizer.fingerprint`)
    model_type: str | None
    vocab_size: int
    width: int
    num_layers: int | None

    @staticmethod
    def read(entries: Entries) -> DrafterTarget:
        """Return what the entries target.* of a file say."""
        return DrafterTarget(
            entries.text("target.vocabulary"),
            entries.text("target.model_type"),
            entries.count("target.vocab_size"),
            entries.count("target.width"),
            entries.count("target.num_layers"),
        )

    def mismatches(self, given: DrafterTarget) -> list[str]:
        """Return in what a model differs from this one, which something was trained for; nothing where it fits."""
        reasons = [
            f"its {field.replace('_', ' ')} is {getattr(given, field)!r}, must be {getattr(self, field)!r}"
            for field in ("model_type", "width", "num_layers", "vocab_size")
            if getattr(self, field) is not None and _plain(getattr(self, field)) != _plain(getattr(given, field))
        ]
        if not reasons and self.vocabulary is not None and self.vocabulary != given.vocabulary:
            reasons.append("its token ids stand for other tokens")
        return reasons


def _plain(value: Any) -> Any:
    """Return a model type as class names spell it: Gemma3, "gemma3" and "gemma3_text" are one."""
    return value.replace("_", "").removesuffix("text") if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class Entries:
    """A file's values by key, not believed: each is asked for by its type, and an error names file and key."""

    raw: Mapping[str, Any]
    where: str

    @staticmethod
    def of(file: GGUFFile, prefix: str) -> Entries:
        """Return the metadata of a file whose keys begin with a prefix, without it."""
        stated = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
        return Entries(stated, f"{file.path}: metadata")

    def text(self, name: str) -> str:
        """Return a string."""
        value = self.raw.get(name)
        if not isinstance(value, str):
            raise self.error(name, f"must be a string, is {value!r:.60}")
        return value

    def count(self, name: str, absent: int | None = None) -> int:
        """Return an integer of at least 0; `absent` where there is none."""
        value = self.raw.get(name, absent)
        if type(value) is not int or value < 0:
            raise self.error(name, f"must be an integer of at least 0, is {value!r:.60}")
        return value

    def number(self, name: str, absent: float | None = None) -> float:
        """Return a number above 0; `absent` where there is none."""
        value = self.raw.get(name, absent)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self.error(name, f"must be a number above 0, is {value!r:.60}")
        return float(value)

    def flag(self, name: str, absent: bool) -> bool:
        """Return true or false; `absent` where there is neither."""
        value = self.raw.get(name, absent)
        if not isinstance(value, bool):
            raise self.error(name, f"must be true or false, is {value!r:.60}")
        return value

    def choice(self, name: str, allowed: Sequence[str], absent: str) -> str:
        """Return one of some words; `absent` where there is none."""
        value = self.raw.get(name, absent)
        if value not in allowed:
            raise self.error(name, f"must be one of {', '.join(allowed)}, is {value!r:.60}")
        return str(value)

    def counts(self, name: str) -> tuple[int, ...]:
        """Return a list of integers of at least 0."""
        value = self.raw.get(name)
        if not isinstance(value, list | tuple | array) or not all(
            type(number) is int and number >= 0 for number in value
        ):
            raise self.error(name, f"must be a list of integers of at least 0, is {value!r:.60}")
        return tuple(value)

    def fractions(self, name: str) -> tuple[float, ...]:
        """Return a list of numbers in [0, 1]."""
        value = self.raw.get(name)
        if not isinstance(value, list | tuple | array) or not all(
            isinstance(number, int | float) and not isinstance(number, bool) and 0 <= number <= 1 for number in value
        ):
            raise self.error(name, f"must be a list of numbers in [0, 1], is {value!r:.60}")
        return tuple(map(float, value))

    def error(self, name: str, problem: str) -> WeightsError:
        """Return the error that says what is wrong with a key."""
        return WeightsError(f"{self.where}: {name} {problem}")


def open_gguf(path: Path, architecture: str, what: str) -> GGUFFile:
    """Return a GGUF file of an architecture of ours; raises UsageError where there is no such `what`, WeightsError."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file: give the GGUF file of a trained {what}")
    file = read_gguf(path)
    if (found := file.metadata.get("general.architecture")) != architecture:
        raise UsageError(f"{path}: is no {what}: general.architecture is {found!r}, must be {architecture!r}")
    return file


def check_shapes(kind: str, tensors: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise WeightsError if a drafter's tensors are not exactly those of `shapes`."""
    if tensors.keys() != shapes.keys():
        odd = sorted(tensors.keys() ^ shapes.keys())
        raise WeightsError(f"the drafter's tensors must be {', '.join(shapes)} ({kind}); look at {odd}")
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise WeightsError(f"tensor {name!r} of the drafter must have shape {shape}, has {tensors[name].shape}")
