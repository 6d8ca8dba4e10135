"""What the trainer needs of a drafter network, whatever its kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from outpace.train.batch import Batch
from outpace.train.target import FrozenTarget
from outpace.train.text.corpus import Conversation
from outpace.weights.trained import Entries


class DraftNetwork(nn.Module, ABC):
    """A network whose parameters are the tensors of a drafter's file, under the same names.

    kind: as in the file. decay: factor of the loss from one depth to the next. share: of the positions that a step
    of training begins drafts at. num_depths: guesses that a step of training unrolls. head: the matrix whose rows are
    tokens; a parameter where it is trained.
    """

    kind: ClassVar[str]
    decay: ClassVar[float]
    share: ClassVar[float]
    num_depths: int
    taps: tuple[int, ...]
    head_tokens: tuple[int, ...]
    num_fixed: int
    head: Tensor

    @classmethod
    @abstractmethod
    def fresh(
        cls,
        target: FrozenTarget,
        taps: tuple[int, ...],
        head_tokens: tuple[int, ...],
        num_fixed: int,
        generator: torch.Generator,
    ) -> Self:
        """Return an untrained network with the target's sizes, norm and rows of the unembedding."""

    @classmethod
    @abstractmethod
    def of(cls, entries: Entries, tensors: Mapping[str, Tensor], target: FrozenTarget) -> Self:
        """Return the network that these entries and tensors of a drafter's file are."""

    @abstractmethod
    def states(self, batch: Batch, num_depths: int) -> list[Tensor]:
        """Return what the head multiplies at each depth, [B, A, D], teacher-forced: guesses before are the text's."""

    def calibrate(self, target: FrozenTarget, text: Sequence[Conversation]) -> None:
        """Measure on text what the file says beside weights, if anything; called before each export."""

    @abstractmethod
    def numbers(self) -> dict[str, Any]:
        """Return the entries of the drafter's file beside its tensors and target, without "drafter."."""
