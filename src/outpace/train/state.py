"""A run of training on disk: one file, replaced in one step, from which it goes on as if it had never stopped."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from outpace.errors import UsageError, shown

_SCHEMA = 2


@dataclass(slots=True)
class RunState:
    """Everything that the next step depends on, beside the text and the target.

    made_with: kind, settings, target and text, which a run that goes on must share. numbers: of the network, as in
    its file. network, optimisers: their state dicts. Batches and anchors are functions of (seed, step), so the step is
    the whole state of the randomness. seconds: of training so far. best: the file of the best drafter yet, in the
    same folder, and its score. log: of evaluations.
    """

    made_with: dict[str, Any]
    numbers: dict[str, Any]
    network: dict[str, Any]
    optimisers: list[dict[str, Any]]
    step: int = 0
    seconds: float = 0.0
    num_evaluated: int = 0
    best: tuple[str, float] | None = None
    log: list[dict[str, Any]] = field(default_factory=list)


def save_state(path: Path, state: RunState) -> None:
    """Write a checkpoint, whole or not at all: whoever is killed in between finds the last one."""
    save_tensors(path, {name: getattr(state, name) for name in RunState.__slots__} | {"schema": _SCHEMA})


def save_tensors(path: Path, values: dict[str, Any]) -> None:
    """Write tensors and plain values in PyTorch's format, whole or not at all."""
    new = path.with_name(f"{path.name}.new")
    with new.open("wb") as file:
        torch.save(values, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def load_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return what `save_tensors` wrote."""
    found: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return found


def load_state(path: Path, made_with: dict[str, Any]) -> RunState:
    """Return the checkpoint of a run; raises UsageError if it is no such file, or of a run with other settings."""
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UsageError(f"{path}: is no checkpoint of a run ({error}): remove it to begin again") from error
    if not isinstance(values, dict) or values.pop("schema", None) != _SCHEMA:
        raise UsageError(f"{path}: is no checkpoint of this version of Outpace: remove it to begin again")
    state = RunState(**values)
    for name, value in made_with.items():
        if state.made_with.get(name) != value:
            raise UsageError(
                f"{path}: this run was begun with {name} = {shown(state.made_with.get(name))}, now it is "
                f"{shown(value)}: go on with the same, or choose another folder"
            )
    return state
