"""What `outpace train diffusion` and `train jacobi` can be told; nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from outpace.errors import UsageError, one_of
from outpace.train.adapt.settings import AdaptSettings, Kind, Weights
from outpace.train.options import RunOptions, about

KINDS: tuple[Kind, ...] = ("diffusion", "jacobi")
_OF_DIFFUSION = ("shift", "min_noise", "max_noise", "loss")


@dataclass(frozen=True, kw_only=True)
class AdaptingOptions:
    """What is learned, and how much may change. What is not given is the recipe's."""

    weights: Weights | None = field(
        default=None,
        metadata=about("lora: an adapter beside the model; full: another model, in a folder; None: lora."),
    )
    rank: int | None = field(
        default=None, metadata=about("Rank of the adapter's matrices, that of medusa --joint too; None: 32.")
    )
    block: int | None = field(default=None, metadata=about("Tokens of a block; None: 16."))
    soft: float | None = field(
        default=None, metadata=about("Share of the target's own distribution in what is learned; None: 0.5.")
    )
    clean: float | None = field(
        default=None,
        metadata=about(
            "Weight of the autoregressive loss, which keeps the text good; not of a diffusion adapter; None: 1."
        ),
    )
    shift: int | None = field(
        default=None,
        metadata=about("Diffusion: 1 if a row predicts the token behind it, 0 if the token at its place; None: 1."),
    )
    min_noise: float | None = field(
        default=None, metadata=about("Diffusion: minimum probability that a slot is masked; None: 0.")
    )
    max_noise: float | None = field(
        default=None, metadata=about("Diffusion: maximum probability that a slot is masked; None: 1.")
    )
    loss: Literal["mean", "elbo"] | None = field(
        default=None, metadata=about("Diffusion: whether masked slots weigh the same, or 1 / noise; None: mean.")
    )


ADAPTING_NAMES = tuple(own.name for own in fields(AdaptingOptions))


@dataclass(frozen=True, kw_only=True)
class AdaptOptions(RunOptions, AdaptingOptions):
    """All of it. Raises UsageError for what cannot work or would be ignored."""

    kind: Kind
    start: Path | None = field(
        default=None, metadata=about("Adapter to continue: its file, or the folder of an earlier run; None: none.")
    )

    def __post_init__(self) -> None:
        one_of("kind", self.kind, KINDS)
        RunOptions.__post_init__(self)
        for name in self._ignored:
            if getattr(self, name) is not None:
                what = f"{self.kind} with --weights {self.weights or 'lora'}"
                own = "from" if name == "start" else name.replace("_", "-")
                raise UsageError(f"--{own} would be ignored by {what}: leave it out")
        AdaptSettings(self.kind, steps=1, **self.chosen)

    @property
    def _ignored(self) -> tuple[str, ...]:
        """Options that this kind, with these weights, has no use for."""
        of_kind = _OF_DIFFUSION if self.kind == "jacobi" else ()
        if self.weights == "full":
            return (*of_kind, "rank", "start")
        return of_kind if self.kind == "jacobi" else ("clean",)

    @property
    def chosen(self) -> dict[str, Any]:
        """What was given of how to adapt, by its name in the settings."""
        values = {name: getattr(self, name) for name in ADAPTING_NAMES}
        return {name: value for name, value in values.items() if value is not None}
