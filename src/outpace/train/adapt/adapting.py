"""What an adapter learns, or all weights: to fill masked slots (diffusion), or to jump to the fixed point (jacobi)."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from outpace.errors import UsageError
from outpace.train.adapt.blocks import Blocks, make_blocks
from outpace.train.adapt.export import read_result, write_result
from outpace.train.adapt.learner import Learner
from outpace.train.adapt.measure import Measured, measure, measured_of
from outpace.train.adapt.objectives import loss_of
from outpace.train.adapt.settings import AdaptSettings
from outpace.train.objective import StepLosses, adamw
from outpace.train.state import save_tensors
from outpace.train.target import TargetIdentity
from outpace.train.text.corpus import Conversation

_RESULTS = {"lora": "adapter.gguf", "full": "weights.pt"}

Planned = tuple[Blocks, np.random.Generator]


class Adapting:
    """The objective (`objective.Objective`) of an adapter, or of all weights."""

    peak = 1.0

    def __init__(
        self,
        learner: Learner,
        settings: AdaptSettings,
        text: Sequence[Conversation],
        held_out: Sequence[Conversation],
        ends: Collection[int],
        identity: TargetIdentity,
        start: Path | None = None,
    ) -> None:
        """Take a fresh learner. ends: tokens that end a text. start: an adapter's file to begin with."""
        self.settings, self.text = settings, text
        self._learner, self._held_out, self._ends = learner, held_out, ends
        self._identity, self._start = identity, start
        self.result = _RESULTS[settings.weights]
        self.beginning: Literal["compared", "kept"] = "compared" if start is None else "kept"
        self.is_accelerated = learner.device.type != "cpu"

    def made_with(self) -> dict[str, Any]:
        return {
            "target": self._identity.fingerprint,
            "start": None if self._start is None else hashlib.sha256(self._start.read_bytes()).hexdigest(),
        }

    # The network.

    def begin(self) -> None:
        if self._start is not None:
            self._learner.load(read_result(self._start))

    def load(self, state: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        self._learner.load(state)

    def state(self) -> dict[str, Tensor]:
        return self._learner.state()

    def numbers(self) -> dict[str, Any]:
        return {}

    # Learning.

    def parameters(self) -> list[nn.Parameter]:
        return list(self._learner.parameters.values())

    def optimisers(self) -> list[torch.optim.Optimizer]:
        return [adamw([(self.parameters(), self.settings.peak)])]

    def paces(self, done: float) -> Sequence[float]:
        return (1.0,)

    def plan(self, step: int, places: Sequence[int]) -> Planned | None:
        settings, chosen = self.settings, [self.text[i] for i in places]
        rng = np.random.default_rng([settings.seed, 1, step])
        blocks = make_blocks(chosen, settings.block, settings.shift, self._ends, self._learner.device, rng)
        return None if blocks is None else (blocks, rng)

    def losses(self, plan: Planned, done: float) -> StepLosses | None:
        return loss_of(self._learner, plan[0], self.settings, plan[1])

    # Measuring and keeping.

    def write_first(self, path: Path) -> None:
        if self._start is not None:
            shutil.copyfile(self._start, path)
        elif self._learner.adapter is None:
            save_tensors(path, dict(self._learner.state()))  # the original, not rounded
        else:
            self.write(path)

    def write(self, path: Path) -> None:
        write_result(self._learner, self.settings, self._identity, path)

    def measure(self, path: Path) -> Measured:
        with self._as_written(path):
            measured = measure(self._learner, self._held_out, self._ends, self.settings)
        if measured is None:
            raise UsageError(
                f"there is no held-out text with a block of {self.settings.block} tokens: hold out more, give longer "
                "text, or choose smaller blocks"
            )
        return measured

    @contextmanager
    def _as_written(self, path: Path) -> Iterator[None]:
        """Let the learner have the numbers of a file for a while."""
        own = {name: x.clone() for name, x in self._learner.state().items()}
        self._learner.load(read_result(path))
        try:
            yield
        finally:
            self._learner.load(own)

    def measure_in_full(self, path: Path, best: Measured) -> Measured:
        return best

    def score(self, measured: Measured) -> float:
        return measured.score

    def measured_of(self, entry: Mapping[str, Any]) -> Measured:
        return measured_of(entry)
