"""How much of the target is tuned beside its heads, and how fast."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from outpace.errors import UsageError, integer, real


@dataclass(frozen=True, slots=True)
class JointSettings:
    """How an adapter of the target learns beside the heads. The loss is L_LM + heads_weight * L_Medusa.

    heads_first: the fraction of the run in which the heads learn alone, as in Medusa-1; over the same fraction again
    the adapter's learning rate rises to `rate`, a quarter of the heads'. rank, alpha: of LoRA; alpha / rank is its
    scale.
    """

    rank: int = 32
    alpha: float = 32.0
    rate: float = 2.5e-4
    heads_weight: float = 0.2
    heads_first: float = 0.25

    def __post_init__(self) -> None:
        integer("rank", self.rank, 1)
        real("alpha", self.alpha, 0.0, 1e9)
        real("target_learning_rate", self.rate, 1e-7, 1.0)
        real("heads_weight", self.heads_weight, 0.0, 1e3)
        real("heads_first", self.heads_first, 0.0, 0.9)
        if not self.heads_weight:
            raise UsageError("heads_weight must be above 0: without it nothing teaches the heads")

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, as a checkpoint keeps them."""
        return {f"joint.{field.name}": getattr(self, field.name) for field in fields(self)}

    def pace(self, done: float) -> float:
        """Return the factor of the adapter's learning rate when the fraction `done` of a run is over."""
        if done < self.heads_first:
            return 0.0
        return min(1.0, (done - self.heads_first) / self.heads_first) if self.heads_first else 1.0
