"""What a run of adaptation is told."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from outpace.errors import UsageError, integer, one_of, real
from outpace.train.schedule import fraction

Kind = Literal["diffusion", "jacobi"]
Weights = Literal["lora", "full"]
LossWeights = Literal["mean", "elbo"]
_RATES = {"lora": 1e-3, "full": 1e-4}


@dataclass(frozen=True, slots=True)
class AdaptSettings:
    """How long, on what, and how fast to learn.

    steps, budget_s: the end of the run, by count or by seconds of training (evaluations come on top); with both, the
    first that is reached, and the schedule follows the steps. tokens_per_batch: of clean text, padding included.
    weights: "lora" trains an adapter of this rank, alpha / rank times what it says; "full" trains everything.
    block: rows of a block. shift: see `blocks`; jacobi keeps it (1).
    soft: the share of the target's own distribution in a label, the rest is the text's token.
    clean: the weight of the autoregressive loss, where the clean tokens are computed with what is trained.
    Of diffusion only: a block's slots are masked with a probability t, uniform in [min_noise, max_noise] (0 and 1: the
    linear schedule; less: clipped, as in BD3-LM). loss: "mean" over the masked slots, or "elbo": each weighs 1 / t.
    rate: peak learning rate of AdamW (None: 1e-3 for an adapter, 1e-4 where everything learns). clip: maximum norm of
    the gradients. evaluations: how often the run measures itself on held-out text, the end included, on at most
    `measured_rows` rows. save_every_s: seconds between checkpoints. format: of the adapter's matrices in its file.
    """

    kind: Kind
    steps: int | None = None
    budget_s: float | None = None
    tokens_per_batch: int = 4096
    seed: int = 0
    weights: Weights = "lora"
    rank: int = 32
    alpha: float = 32.0
    block: int = 16
    shift: int = 1
    soft: float = 0.5
    clean: float = 1.0
    min_noise: float = 0.0
    max_noise: float = 1.0
    loss: LossWeights = "mean"
    rate: float | None = None
    warmup_steps: int = 30
    clip: float = 1.0
    evaluations: int = 4
    measured_rows: int = 4096
    save_every_s: float = 30.0
    format: str = "Q8_0"

    def __post_init__(self) -> None:
        if self.steps is None and self.budget_s is None:
            raise UsageError("training needs an end: give steps, budget_s, or both")
        one_of("kind", self.kind, ("diffusion", "jacobi"))
        one_of("weights", self.weights, ("lora", "full"))
        one_of("loss", self.loss, ("mean", "elbo"))
        one_of("format", self.format, ("Q8_0", "F16", "F32"))
        for name in ("steps", "tokens_per_batch", "rank", "evaluations", "measured_rows"):
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), 1)
        for name in ("seed", "warmup_steps"):
            integer(name, getattr(self, name), 0)
        integer("block", self.block, 2, 256)
        integer("shift", self.shift, 0, 1)
        real("soft", self.soft, 0.0, 1.0)
        real("min_noise", self.min_noise, 0.0, 1.0)
        real("max_noise", self.max_noise, 0.0, 1.0)
        for name in ("budget_s", "alpha", "clean", "rate", "clip", "save_every_s"):
            if getattr(self, name) is not None:
                real(name, getattr(self, name), 0.0, 1e9)
        if not self.min_noise < self.max_noise:
            raise UsageError(f"min_noise must be below max_noise, are {self.min_noise:g} and {self.max_noise:g}")
        if self.kind == "jacobi" and self.shift != 1:
            raise UsageError("shift must be 1 for jacobi: its rows predict the next token, as autoregressive ones do")

    @property
    def is_clean_adapted(self) -> bool:
        """Whether clean tokens are computed with what is trained: not by a diffusion adapter, which is off there."""
        return self.kind == "jacobi" or self.weights == "full"

    @property
    def peak(self) -> float:
        """The peak learning rate."""
        return self.rate if self.rate is not None else _RATES[self.weights]

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, as a checkpoint keeps them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def done(self, steps: int, seconds: float) -> float:
        """Return the fraction of the run that is over, from 0 to 1."""
        return fraction(self.steps, self.budget_s, steps, seconds)
