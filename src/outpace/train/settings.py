"""What a run of training is told: its length, for every kind of training, and what a drafter's has beside it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from outpace.errors import UsageError, integer, one_of, real
from outpace.train.schedule import fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """How long, in which portions, and how carefully to learn: what every training is told.

    steps, budget_s: the end of the run, by count or by seconds of training (evaluations come on top); with both, the
    first that is reached, and the schedule follows the steps. tokens_per_batch: padding included. clip: maximum norm of
    the gradients. evaluations: how often the run measures itself on held-out text, the end included. save_every_s:
    seconds between checkpoints.
    """

    steps: int | None = None
    budget_s: float | None = None
    tokens_per_batch: int = 4096
    seed: int = 0
    warmup_steps: int = 60
    clip: float = 2.0
    evaluations: int = 4
    save_every_s: float = 30.0

    def __post_init__(self) -> None:
        if self.steps is None and self.budget_s is None:
            raise UsageError("training needs an end: give steps, budget_s, or both")
        self._check_integers(1, "steps", "tokens_per_batch", "evaluations")
        self._check_integers(0, "seed", "warmup_steps")
        self._check_reals("budget_s", "clip", "save_every_s")

    def _check_integers(self, minimum: int, *names: str) -> None:
        for name in names:
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), minimum)

    def _check_reals(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) is not None:
                real(name, getattr(self, name), 0.0, 1e9)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, as a checkpoint keeps them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def done(self, steps: int, seconds: float) -> float:
        """Return the fraction of the run that is over, from 0 to 1."""
        return fraction(self.steps, self.budget_s, steps, seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings(LoopSettings):
    """How a drafter learns. The defaults are the recipe of the shipped drafter.

    matrix_rate, vector_rate, head_rate: learning rates of Muon, and of AdamW for vectors and for the head. peak: factor
    of them all (None: 1, or 0.3 where a drafter is continued).
    head_rows: tokens that the head knows, the most frequent ones of the text; num_fixed: those it always looks at.
    taps: layers whose outputs are read (None: four, spread over the target). format: of the drafter's file.
    """

    matrix_rate: float = 2e-3
    vector_rate: float = 1e-3
    head_rate: float = 3e-4
    peak: float | None = None
    head_rows: int = 16384
    num_fixed: int = 4096
    taps: tuple[int, ...] | None = None
    format: str = "Q8_0"

    def __post_init__(self) -> None:
        LoopSettings.__post_init__(self)
        self._check_integers(1, "head_rows", "num_fixed")
        self._check_reals("matrix_rate", "vector_rate", "head_rate", "peak")
        one_of("format", self.format, ("Q8_0", "Q4_1", "F16", "F32"))
