"""What `outpace distill` can be told. The command line makes an option of every field."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from outpace.errors import UsageError, integer, one_of, real
from outpace.train.options import RunOptions, about


@dataclass(frozen=True, kw_only=True)
class StudentOptions:
    """What the student is, and how it learns."""

    layers: str | None = field(
        default=None,
        metadata=about("Layers of the teacher: how many, or which, as in 0,1,28,29; None: those of --student."),
    )
    width: int | None = field(
        default=None, metadata=about("Neurons of each feed-forward, the busiest ones; None: all of the teacher's.")
    )
    student: Path | None = field(
        default=None,
        metadata=about("Hugging Face folder of the teacher's vocabulary to start from; None: --layers says."),
    )
    importance: Literal["cosine", "perplexity"] = field(
        default="cosine", metadata=about("What layers are chosen by, where --layers says how many.")
    )
    objective: Literal["fkl", "rkl", "tvd", "jsd", "gkd"] = field(
        default="fkl", metadata=about("What is made smaller; gkd: jsd, partly on text of the student's own.")
    )
    use: Literal["student", "draft"] = field(
        default="student", metadata=about("What it is for: student, a model of its own; draft, a draft model.")
    )
    on_policy: float | None = field(
        default=None, metadata=about("Share of steps on text of the student's own; None: 0.5 with gkd, else 0.")
    )
    on_policy_tokens: int = field(default=32, metadata=about("Length of the student's own responses."))
    hidden: float = field(default=0.0, metadata=about("Weight of matching the teacher's hidden states."))
    top_k: int | None = field(
        default=None,
        metadata=about("Keep only so many likely tokens of the teacher, on disk, and the rest's mass; None: all."),
    )
    train_embedding: bool = field(
        default=False, metadata=about("Train the embedding and the output matrix too; else they stay the teacher's.")
    )
    max_draft: int = field(default=4, metadata=about("Maximum draft tokens in a step, where it drafts."))
    format: Literal["q8_0", "f16"] = field(default="q8_0", metadata=about("Format of the student's GGUF file."))


@dataclass(frozen=True, kw_only=True)
class DistillOptions(RunOptions, StudentOptions):
    """All of it. Raises UsageError for what cannot work or would be ignored."""

    def __post_init__(self) -> None:
        RunOptions.__post_init__(self)
        one_of("importance", self.importance, ("cosine", "perplexity"))
        one_of("objective", self.objective, ("fkl", "rkl", "tvd", "jsd", "gkd"))
        one_of("as", self.use, ("student", "draft"))
        one_of("format", self.format, ("q8_0", "f16"))
        for name in ("width", "top_k"):
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), 1)
        integer("on_policy_tokens", self.on_policy_tokens, 1, 4096)
        integer("max_draft", self.max_draft, 1, 5)
        real("hidden", self.hidden, 0.0, 1e6)
        if self.on_policy is not None:
            real("on_policy", self.on_policy, 0.0, 1.0)
        self._check_student()

    def _check_student(self) -> None:
        if (self.layers is None) == (self.student is None):
            raise UsageError(
                "a student is made of the teacher's layers (--layers 8, or --layers 0,1,28,29) or is a folder "
                "(--student): give one of them"
            )
        if self.layers is not None and not re.fullmatch(r"\d+(,\d+)*", self.layers):
            raise UsageError(f"--layers must be a number, or layers such as 0,1,28,29, is {self.layers!r}")
        if self.student is not None:
            for name, given in (("width", self.width is not None), ("hidden", self.hidden > 0)):
                if given:
                    raise UsageError(f"--{name} is about layers of the teacher, and would be ignored with --student")
        if self.importance != "cosine" and self.num_layers is None:
            raise UsageError("--importance would be ignored: it chooses layers where --layers is a number")

    @property
    def num_layers(self) -> int | None:
        """How many layers are chosen by importance; None where they are given."""
        return int(self.layers) if self.layers is not None and "," not in self.layers else None

    @property
    def given_layers(self) -> tuple[int, ...] | None:
        """The layers, where they are listed."""
        return tuple(map(int, self.layers.split(","))) if self.layers is not None and "," in self.layers else None

    @property
    def own_text(self) -> float:
        """The share of steps on text of the student's own."""
        return self.on_policy if self.on_policy is not None else 0.5 if self.objective == "gkd" else 0.0
