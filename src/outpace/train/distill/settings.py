"""What a run of distillation is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from outpace.errors import one_of, real
from outpace.train.settings import LoopSettings

Objective = Literal["fkl", "rkl", "tvd", "jsd", "gkd"]
Use = Literal["student", "draft"]
OBJECTIVES: tuple[Objective, ...] = ("fkl", "rkl", "tvd", "jsd", "gkd")
USES: tuple[Use, ...] = ("student", "draft")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillSettings(LoopSettings):
    """By what, and how fast a student learns.

    use: what the best student is chosen by: "student", its perplexity on held-out text; "draft", its tokens per step as
    a draft model, with drafts of max_draft tokens. objective: a divergence (`objectives`), or "gkd": jsd, partly on
    text of the student's own. on_policy: the share of steps whose responses the student writes, on_policy_tokens long,
    at temperature 1 (GKD's lambda). hidden: weight of hidden-state matching. top_k: learn the teacher's so many most
    likely tokens and the rest, kept on disk (None: whole distributions, computed anew).
    trains_embedding: else embedding and output matrix stay the teacher's.
    matrix_rate, vector_rate, embedding_rate: learning rates of Muon, and of AdamW for vectors, and for the embedding
    and the output matrix.
    """

    use: Use = "student"
    objective: Objective = "fkl"
    on_policy: float = 0.0
    on_policy_tokens: int = 32
    hidden: float = 0.0
    top_k: int | None = None
    trains_embedding: bool = False
    max_draft: int = 4
    matrix_rate: float = 2e-3
    vector_rate: float = 1e-3
    embedding_rate: float = 3e-4

    def __post_init__(self) -> None:
        LoopSettings.__post_init__(self)
        one_of("use", self.use, USES)
        one_of("objective", self.objective, OBJECTIVES)
        self._check_integers(1, "top_k", "on_policy_tokens", "max_draft")
        self._check_reals("matrix_rate", "vector_rate", "embedding_rate", "hidden")
        real("on_policy", self.on_policy, 0.0, 1.0)

    @property
    def divergence(self) -> str:
        """The name of what is made smaller at every position."""
        return "jsd" if self.objective == "gkd" else self.objective
