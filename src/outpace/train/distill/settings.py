"""What a run of distillation is told."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from outpace.errors import UsageError, integer, one_of, real
from outpace.train.schedule import fraction

Objective = Literal["fkl", "rkl", "tvd", "jsd", "gkd"]
Use = Literal["student", "draft"]
OBJECTIVES: tuple[Objective, ...] = ("fkl", "rkl", "tvd", "jsd", "gkd")
USES: tuple[Use, ...] = ("student", "draft")


@dataclass(frozen=True, slots=True)
class DistillSettings:
    """How long, by what, and how fast a student learns.

    use: what the best student is chosen by: "student", its perplexity on held-out text; "draft", its tokens per step as
    a draft model, with drafts of max_draft tokens. objective: a divergence (`objectives`), or "gkd": jsd, partly on
    text of the student's own. on_policy: the share of steps whose responses the student writes, on_policy_tokens long,
    at temperature 1 (GKD's lambda). hidden: weight of hidden-state matching. top_k: learn the teacher's so many most
    likely tokens and the rest, kept on disk (None: whole distributions, computed anew).
    trains_embedding: else embedding and output matrix stay the teacher's.
    steps, budget_s, tokens_per_batch, seed, matrix_rate, vector_rate, warmup_steps, clip, evaluations, save_every_s:
    as in `TrainSettings`. embedding_rate: of AdamW for the embedding and the output matrix.
    """

    use: Use = "student"
    objective: Objective = "fkl"
    on_policy: float = 0.0
    on_policy_tokens: int = 32
    hidden: float = 0.0
    top_k: int | None = None
    trains_embedding: bool = False
    max_draft: int = 4
    steps: int | None = None
    budget_s: float | None = None
    tokens_per_batch: int = 4096
    seed: int = 0
    matrix_rate: float = 2e-3
    vector_rate: float = 1e-3
    embedding_rate: float = 3e-4
    warmup_steps: int = 60
    clip: float = 2.0
    evaluations: int = 4
    save_every_s: float = 30.0

    def __post_init__(self) -> None:
        if self.steps is None and self.budget_s is None:
            raise UsageError("training needs an end: give steps, budget_s, or both")
        one_of("use", self.use, USES)
        one_of("objective", self.objective, OBJECTIVES)
        for name in ("steps", "tokens_per_batch", "evaluations", "top_k", "on_policy_tokens", "max_draft"):
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), 1)
        for name in ("seed", "warmup_steps"):
            integer(name, getattr(self, name), 0)
        for name in ("budget_s", "matrix_rate", "vector_rate", "embedding_rate", "clip", "save_every_s", "hidden"):
            if getattr(self, name) is not None:
                real(name, getattr(self, name), 0.0, 1e9)
        real("on_policy", self.on_policy, 0.0, 1.0)

    @property
    def divergence(self) -> str:
        """The name of what is made smaller at every position."""
        return "jsd" if self.objective == "gkd" else self.objective

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, as a checkpoint keeps them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def done(self, steps: int, seconds: float) -> float:
        """Return the fraction of the run that is over, from 0 to 1."""
        return fraction(self.steps, self.budget_s, steps, seconds)
