"""What a student is worth, measured in the engine: as a model of its own, and as a draft model of its teacher."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from outpace.api import LanguageModel
from outpace.measure.quality.tasks import MAX_NEW_TOKENS, exact_match, repetition, tasks
from outpace.train.text.corpus import Conversation

_TASKS = 8  # of each kind
_TURNS, _TOKENS, _PROMPTS = 5, 48, 4  # of a measurement of speed


@dataclass(frozen=True, slots=True)
class ModelOutcome:
    """One model. speed: tokens/s of plain decoding, one request at a time. right: exact match by kind of task."""

    parameters: int
    bytes: int
    speed: float
    right: dict[str, float]
    repetition: float


@dataclass(frozen=True, slots=True)
class DraftOutcome:
    """The teacher decoding with the student as draft model: held-out conversations, greedy.

    tokens_per_step: bonus included. speed: tokens/s, beside the teacher's plain ones of the same turns.
    same: how many of the conversations are token by token what they were before.
    """

    conversations: int
    same: int
    tokens_per_step: float
    speed: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """Both models, and what they do together."""

    teacher: ModelOutcome
    student: ModelOutcome
    draft: DraftOutcome

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def measure(
    teacher: LanguageModel,
    student: LanguageModel,
    path: Path,
    held_out: Sequence[Conversation],
    max_draft: int,
    go_on: Callable[[], bool] = lambda: True,
    clock: Callable[[], float] = time.perf_counter,
) -> Outcome:
    """Measure a student that was loaded from `path`. go_on: whether there is time for one more conversation."""
    draft: dict[str, Any] = {"strategy": "draft_model", "draft_model": path, "max_draft": max_draft}
    prompts = [own.tokens[: own.num_prompt].tolist() for own in held_out[:_PROMPTS]]
    ways: tuple[tuple[LanguageModel, dict[str, Any]], ...] = (
        (teacher, {"strategy": "none"}),
        (student, {"strategy": "none"}),
        (teacher, draft),
    )
    speeds: list[list[float]] = [[], [], []]
    for turn in range(_TURNS + 1):
        for (lm, options), found in zip(ways, speeds, strict=True):
            before, tokens = clock(), 0
            for prompt in prompts:
                result = lm.generate(prompt, max_new_tokens=_TOKENS, salt=turn.to_bytes(8, "little"), **options)
                tokens += len(result.tokens)
            if turn:  # the first one warms up
                found.append(tokens / max(clock() - before, 1e-9))
    plain, small, drafted = map(median, speeds)
    own = [_model(lm, speed) for lm, speed in ((teacher, plain), (student, small))]
    return Outcome(own[0], own[1], _drafted(teacher, draft, held_out, drafted, go_on))


def num_parameters(lm: LanguageModel) -> int:
    """Return how many numbers a loaded model has; those of a tied output matrix once."""
    from math import prod

    from outpace.models.checkpoint import open_checkpoint

    return sum(prod(tensor.shape) for tensor in open_checkpoint(lm.path).tensors.values())


def _model(lm: LanguageModel, speed: float) -> ModelOutcome:
    questions = tasks(_TASKS)
    results = lm.generate(
        [task.encode(lm.tokenizer) for task in questions], max_new_tokens=MAX_NEW_TOKENS, strategy="none"
    )
    right = exact_match(questions, [result.text for result in results])
    repeated = repetition([result.tokens for result in results])
    return ModelOutcome(num_parameters(lm), lm.num_bytes, speed, right, repeated)


def _drafted(
    teacher: LanguageModel,
    draft: dict[str, Any],
    held_out: Sequence[Conversation],
    speed: float,
    go_on: Callable[[], bool],
) -> DraftOutcome:
    tokens = steps = same = count = 0
    for number, own in enumerate(own for own in held_out if not own.sampled):
        if number and not go_on():
            break
        prompt, response = own.tokens[: own.num_prompt].tolist(), own.tokens[own.num_prompt :].tolist()
        salt = b"drafted" + number.to_bytes(8, "little")
        result = teacher.generate(prompt, max_new_tokens=len(response), salt=salt, **draft)
        tokens, steps, count = tokens + result.stats.tokens, steps + result.stats.steps, count + 1
        same += result.tokens == response
    return DraftOutcome(count, same, tokens / steps if steps else 0.0, speed)
