"""What `outpace train` can be told. The command line makes an option of every field; nothing heavy is imported here."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from outpace.errors import UsageError, integer, one_of, real
from outpace.train.joint.settings import JointSettings

Kind = Literal["eagle", "medusa", "block"]
KINDS: tuple[Kind, ...] = ("eagle", "medusa", "block")
LAST = ("responses", "training")  # stages behind which a run may stop, to go on elsewhere
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def about(text: str) -> dict[str, str]:
    """Return what a field says of itself, for the help of the command line."""
    return {"help": text}


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Which text is trained on."""

    prompts: Path | None = field(
        default=None, metadata=about("File of prompts, a JSON value a line; None: the target writes its own.")
    )
    texts: Path | None = field(
        default=None,
        metadata=about("Texts to train on as they are: plain text, JSON lines, or a corpus folder; None: none."),
    )
    exclude: Path | None = field(
        default=None, metadata=about("File of prompts that training must not see, such as a benchmark's; None: none.")
    )
    num_prompts: int | None = field(
        default=None, metadata=about("Number of prompts the target writes; None: as many as the budget allows.")
    )
    num_responses: int | None = field(
        default=None, metadata=about("Number of prompts it answers to train on; None: as many as the budget allows.")
    )
    max_tokens: int = field(default=256, metadata=about("Maximum number of tokens of a response."))
    max_prompt_tokens: int = field(default=1024, metadata=about("Longer prompts are left out."))
    batch: int = field(default=32, metadata=about("Number of requests that the target answers at once."))
    held_out: float = field(default=0.05, metadata=about("Fraction of the prompts that training never sees."))
    num_checked: int = field(
        default=48, metadata=about("Maximum number of held-out conversations to forecast and to decode for real.")
    )


@dataclass(frozen=True, kw_only=True)
class LengthOptions:
    """How long it is trained, how fast, and on what."""

    budget: str = field(
        default="30m", metadata=about("Time for all of it, such as 90s, 30m or 2h, shared among the stages.")
    )
    steps: int | None = field(default=None, metadata=about("Number of training steps; None: what the budget allows."))
    batch_tokens: int | None = field(
        default=None, metadata=about("Tokens of a training step; None: 4096 on the CPU, 24576 on an accelerator.")
    )
    learning_rate: float | None = field(
        default=None, metadata=about("Peak learning rate of matrices; None: the recipe's own.")
    )
    evaluations: int = field(
        default=4, metadata=about("Number of times that training measures itself on held-out conversations.")
    )
    until: str | None = field(
        default=None,
        metadata=about("Last stage to run here, responses or training: the folder may move on; None: all of them."),
    )
    device: str = field(default="auto", metadata=about("auto, cpu, or an accelerator by its name in PyTorch."))
    seed: int = field(default=0, metadata=about("Same seed, same training, on the CPU and without a time limit."))


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(LengthOptions):
    """How a drafter is trained."""

    start: Path | None = field(
        default=None, metadata=about("Drafter to continue: its file, or the folder of an earlier run; None: none.")
    )
    max_draft: int = field(default=4, metadata=about("Maximum draft tokens in a step, for the forecast and its check."))


@dataclass(frozen=True, kw_only=True)
class JointOptions:
    """How the target is tuned beside its heads. What is not given is the recipe's."""

    joint: bool | None = field(
        default=None,
        metadata=about(
            "medusa: tune the target beside its heads, by an adapter (Medusa-2). The tuned target is another model: "
            "lossy relative to the original; None: no."
        ),
    )
    heads_weight: float | None = field(
        default=None, metadata=about("Weight of the heads' loss beside the target's own; None: 0.2.")
    )
    heads_first: float | None = field(
        default=None,
        metadata=about("Fraction of the training in which the heads learn before the target does; None: 0.25."),
    )
    target_learning_rate: float | None = field(
        default=None, metadata=about("Peak learning rate of the target's adapter; None: 2.5e-4.")
    )
    merge: bool | None = field(
        default=None,
        metadata=about(
            "Write the tuned target as a model of its own too, a float16 folder that needs no adapter; None: no."
        ),
    )


JOINT_NAMES = tuple(own.name for own in fields(JointOptions))


@dataclass(frozen=True, kw_only=True)
class RunOptions(TextOptions, LengthOptions):
    """What every run has. Raises UsageError for what cannot work or would be ignored."""

    def __post_init__(self) -> None:
        budget_seconds(self.budget)
        for name in ("num_prompts", "num_responses", "steps", "batch_tokens"):
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), 1)
        integer("max_tokens", self.max_tokens, 8)
        integer("batch", self.batch, 1, 1024)
        integer("max_prompt_tokens", self.max_prompt_tokens, 8)
        integer("num_checked", self.num_checked, 1)
        integer("evaluations", self.evaluations, 1)
        if self.until is not None:
            one_of("until", self.until, LAST)
        integer("seed", self.seed, 0, 2**53)
        real("held_out", self.held_out, 0.001, 0.5)
        if self.learning_rate is not None:
            real("learning_rate", self.learning_rate, 1e-7, 1.0)
        self._refuse_ignored()

    def _refuse_ignored(self) -> None:
        if self.prompts is not None and self.texts is not None:
            raise UsageError("--prompts and --texts are two ways to say what to train on: give one of them")
        for name, owner in (("num_prompts", "prompts"), ("num_prompts", "texts"), ("num_responses", "texts")):
            if getattr(self, name) is not None and getattr(self, owner) is not None:
                raise UsageError(
                    f"--{name.replace('_', '-')} would be ignored with --{owner}, which gives them: leave it out"
                )
        if self.exclude is not None and self.texts is not None:
            raise UsageError("--exclude compares prompts, and would be ignored with --texts: leave it out")

    def length(self, seconds: float, *, on_cpu: bool) -> dict[str, Any]:
        """Return what the settings of any training are told of its length: for so many seconds, or the steps given."""
        return {
            "steps": self.steps,
            "budget_s": seconds if self.steps is None else None,
            "tokens_per_batch": self.batch_tokens or (4096 if on_cpu else 24576),
            "seed": self.seed,
            "evaluations": self.evaluations,
        }

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values, to be compared with those of an interrupted run."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class TrainOptions(RunOptions, TrainingOptions, JointOptions):
    """What a drafter's training can be told."""

    kind: Kind
    rank: int | None = field(default=None, metadata=about("Rank of the target's adapter; None: 32."))

    def __post_init__(self) -> None:
        one_of("kind", self.kind, KINDS)
        RunOptions.__post_init__(self)
        integer("max_draft", self.max_draft, 1, 5)
        if self.joint and self.kind != "medusa":
            raise UsageError(
                f"--joint would be ignored by {self.kind}: only medusa's heads are trained with the target"
            )
        for name in (*JOINT_NAMES[1:], "rank"):
            if getattr(self, name) is not None and not self.joint:
                raise UsageError(f"--{name.replace('_', '-')} would be ignored without --joint: leave it out")
        _ = self.joint_settings

    @property
    def joint_settings(self) -> JointSettings:
        """How the target is tuned; the adapter's scale is 1, as that of others."""
        given = {
            "rank": self.rank,
            "alpha": None if self.rank is None else float(self.rank),
            "rate": self.target_learning_rate,
            "heads_weight": self.heads_weight,
            "heads_first": self.heads_first,
        }
        return JointSettings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


OPTION_NAMES = tuple(own.name for own in fields(TrainOptions))


def budget_seconds(text: str) -> float:
    """Return the seconds in "90s", "30m", "1.5h". Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text.strip()) if isinstance(text, str) else None
    if match is None or not float(match[1]):
        raise UsageError(f"--budget must be a time such as 90s, 30m or 2h, got {text!r}")
    return float(match[1]) * UNITS[match[2]]
