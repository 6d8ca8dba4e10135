"""What a drafter's network stands on while it learns: the target, left as it is, or tuned beside it (`joint`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from outpace.train.batch import Plan, look
from outpace.train.joint.measure import Divergence
from outpace.train.losses import Losses, draft_loss, target_probs
from outpace.train.networks.network import DraftNetwork
from outpace.train.target import FrozenTarget, TargetIdentity
from outpace.train.text.corpus import Conversation


@dataclass(frozen=True, slots=True)
class StepLosses:
    """A step's loss, whose gradient is taken, and its parts. num_learned: positions with labels.

    divergence: KL(original || tuned), where the target is tuned.
    """

    total: Tensor
    drafts: Losses
    num_learned: int
    divergence: Tensor | None = None


class Backbone(Protocol):
    """The target of a drafter that learns. What `target` gives follows the backbone's parameters."""

    target: FrozenTarget

    def made_with(self) -> dict[str, Any]:
        """Return what a run that goes on must share."""

    def parameters(self) -> list[nn.Parameter]:
        """Return what learns of the target; nothing where it is left as it is."""

    def optimisers(self) -> list[torch.optim.Optimizer]:
        """Return new optimisers of the parameters; every group remembers the rate at its peak."""

    def pace(self, done: float) -> float:
        """Return the factor of their learning rates, beside the schedule's."""

    def state(self) -> dict[str, Tensor]:
        """Return what has been learned, for a checkpoint."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint's state."""

    def losses(
        self, network: DraftNetwork, plan: Plan, head_tokens: Tensor, dtype: torch.dtype, done: float
    ) -> StepLosses:
        """Return the losses of a batch. done: the fraction of the run that is over."""

    def write(self, drafter: Path, format: str) -> TargetIdentity:
        """Write what has been learned beside a drafter's file; return whom that drafter is for."""

    def as_written(self, drafter: Path) -> AbstractContextManager[None]:
        """Let the target have for a while the numbers that were written beside a drafter's file."""

    def divergence(self, held_out: Sequence[Conversation]) -> Divergence | None:
        """Return how far the target is from the original; None where it is the original."""


class Frozen:
    """A target that stays as it is: only the drafter learns."""

    def __init__(self, target: FrozenTarget) -> None:
        self.target = target

    def made_with(self) -> dict[str, Any]:
        return {}

    def parameters(self) -> list[nn.Parameter]:
        return []

    def optimisers(self) -> list[torch.optim.Optimizer]:
        return []

    def pace(self, done: float) -> float:
        return 0.0

    def state(self) -> dict[str, Tensor]:
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        assert not state

    def losses(
        self, network: DraftNetwork, plan: Plan, head_tokens: Tensor, dtype: torch.dtype, done: float
    ) -> StepLosses:
        batch = look(plan, self.target, network.taps)
        probs = target_probs(self.target, batch.final, head_tokens, dtype)
        with torch.autocast(self.target.device.type, dtype, enabled=dtype != torch.float32):
            found = draft_loss(network, batch, probs, head_tokens)
        return StepLosses(found.total, found, batch.num_learned)

    def write(self, drafter: Path, format: str) -> TargetIdentity:
        return self.target.identity

    def as_written(self, drafter: Path) -> AbstractContextManager[None]:
        return nullcontext()

    def divergence(self, held_out: Sequence[Conversation]) -> Divergence | None:
        return None
