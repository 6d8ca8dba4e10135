"""What a run of adaptation is told."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal

from outpace.errors import UsageError, integer, one_of, real
from outpace.train.settings import LoopSettings

Kind = Literal["diffusion", "jacobi"]
Weights = Literal["lora", "full"]
LossWeights = Literal["mean", "elbo"]
_RATES = {"lora": 1e-3, "full": 1e-4}


@dataclass(frozen=True, slots=True)
class AdaptSettings(LoopSettings):
    """What an adapter, or all weights, learn. tokens_per_batch: of clean text.

    weights: "lora" trains an adapter of this rank, alpha / rank times what it says; "full" trains everything.
    block: rows of a block. shift: see `blocks`; jacobi keeps it (1).
    soft: the share of the target's own distribution in a label, the rest is the text's token.
    clean: the weight of the autoregressive loss, where the clean tokens are computed with what is trained.
    Of diffusion only: a block's slots are masked with a probability t, uniform in [min_noise, max_noise] (0 and 1: the
    linear schedule; less: clipped, as in BD3-LM). loss: "mean" over the masked slots, or "elbo": each weighs 1 / t.
    rate: peak learning rate of AdamW (None: 1e-3 for an adapter, 1e-4 where everything learns). measured_rows: held-out
    rows at most that the run measures itself on. format: of the adapter's matrices in its file.
    """

    kind: Kind
    _: KW_ONLY
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
    measured_rows: int = 4096
    format: str = "Q8_0"

    def __post_init__(self) -> None:
        LoopSettings.__post_init__(self)
        one_of("kind", self.kind, ("diffusion", "jacobi"))
        one_of("weights", self.weights, ("lora", "full"))
        one_of("loss", self.loss, ("mean", "elbo"))
        one_of("format", self.format, ("Q8_0", "F16", "F32"))
        self._check_integers(1, "rank", "measured_rows")
        self._check_reals("alpha", "clean", "rate")
        integer("block", self.block, 2, 256)
        integer("shift", self.shift, 0, 1)
        for name in ("soft", "min_noise", "max_noise"):
            real(name, getattr(self, name), 0.0, 1.0)
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
