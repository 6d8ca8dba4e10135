"""What a training learns: the seam between the loop (`trainer.py`) and its objectives.

drafting             a drafter of a target that stays as it is
joint.tuned          heads, and an adapter of their target, together (Medusa-2)
adapt.adapting       an adapter, or all weights, that fill blocks
distill.distilling   a student of a teacher
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from outpace.train.muon import Muon
from outpace.train.settings import LoopSettings
from outpace.train.text.corpus import Conversation

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

P = TypeVar("P")  # the plan of a step
M = TypeVar("M", bound="DataclassInstance")  # what one measurement found, a dataclass of plain values


@dataclass(frozen=True, slots=True)
class StepLosses:
    """A step's loss, whose gradient is taken; positions: how many were learned at.

    parts: by name, what the log tells beside it: scalars, or vectors of one entry a depth. On the device, detached.
    """

    total: Tensor
    positions: int
    parts: Mapping[str, Tensor]


class Objective(Protocol[P, M]):
    """What the loop asks of whatever learns.

    result: name of the best result's file. beginning: what the untrained network is: not worth a measurement, one to
    compare with, or a result that is kept unless a better one comes. is_accelerated: whether plans are made ahead and
    losses are read now and then, because a device works beside the host. peak: factor of all learning rates.
    """

    @property
    def settings(self) -> LoopSettings: ...
    @property
    def text(self) -> Sequence[Conversation]: ...
    @property
    def result(self) -> str: ...
    @property
    def beginning(self) -> Literal["unmeasured", "compared", "kept"]: ...
    @property
    def is_accelerated(self) -> bool: ...
    @property
    def peak(self) -> float: ...

    def made_with(self) -> dict[str, Any]:
        """Return what a run that goes on must share, beside settings and text."""

    def begin(self) -> None:
        """Make the untrained network."""

    def load(self, state: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Make the network of a checkpoint."""

    def state(self) -> dict[str, Tensor]:
        """Return what has been learned, for a checkpoint."""

    def numbers(self) -> dict[str, Any]:
        """Return what a checkpoint needs beside tensors."""

    def parameters(self) -> list[nn.Parameter]:
        """Return what learns."""

    def optimisers(self) -> list[torch.optim.Optimizer]:
        """Return new optimisers of the parameters, that of matrices first; each group has its `base_rate`."""

    def paces(self, done: float) -> Sequence[float]:
        """Return a factor of each optimiser's learning rates, beside the schedule's."""

    def plan(self, step: int, places: Sequence[int]) -> P | None:
        """Return what a step looks at: a function of the step and of the conversations' places in the text.

        It may be asked for in another thread, ahead. None: nothing can be learned from them.
        """

    def losses(self, plan: P, done: float) -> StepLosses | None:
        """Return the losses of a step; None if there is nothing to learn after all."""

    def write_first(self, path: Path) -> None:
        """Write what the run begins with to a result's file."""

    def write(self, path: Path) -> None:
        """Write what has been learned, as it will be used; further files have the same name up to the first dot."""

    def measure(self, path: Path) -> M:
        """Return what a result's file brings on held-out text."""

    def measure_in_full(self, path: Path, best: M) -> M:
        """Return what the finished result brings, if that is to be known more exactly than `best`, its measurement."""

    def score(self, measured: M) -> float:
        """Return what results are chosen by: larger is better."""

    def measured_of(self, entry: Mapping[str, Any]) -> M:
        """Return a measurement from its plain values; other keys are left out."""


def adamw(groups: Iterable[tuple[Iterable[Tensor], float]]) -> torch.optim.Optimizer:
    """Return AdamW for groups of parameters, each with its learning rate."""
    given = [{"params": list(own), "lr": rate, "base_rate": rate} for own, rate in groups]
    return torch.optim.AdamW(given, betas=(0.9, 0.95), weight_decay=0.0)


def muon(matrices: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """Return Muon for matrices."""
    optimiser = Muon(matrices, rate)
    for group in optimiser.param_groups:
        group["base_rate"] = rate
    return optimiser
