"""The stages of `outpace distill`, each kept in the run's folder as it goes, and skipped where it is finished.

    prompts, held-out, responses    text, as in `train.stages`
    training                        training/, log.jsonl -> student/ (a Hugging Face folder), student.gguf
    check                           result.json: speed, tasks, and real decoding with the student as draft model

`card.md` says it in words, `plot.png` shows how it learned. A run that was killed goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from outpace.api import LanguageModel
from outpace.measure.output_file import save
from outpace.measure.progress import Progress
from outpace.measure.provenance import provenance
from outpace.train.distill.distilling import Distilling
from outpace.train.distill.measure import Closeness
from outpace.train.distill.options import DistillOptions
from outpace.train.distill.outcome import measure
from outpace.train.distill.report import card
from outpace.train.distill.settings import DistillSettings
from outpace.train.distill.student import Student, student_of
from outpace.train.report.log import Log
from outpace.train.report.plot import plot
from outpace.train.stages import LOG, TextStages, unseen
from outpace.train.state import load_tensors
from outpace.train.text.corpus import Conversation
from outpace.train.training import learn, target_on

RESULT, CARD, PLOT = "result.json", "card.md", "plot.png"
FOLDER, FILE = "student", "student.gguf"


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished run. student: what to load. result: `result.json`."""

    student: Path
    result: dict[str, Any]


class DistillRun:
    """One run of `outpace distill` in a folder. tell, shown: as in `TextStages`."""

    def __init__(
        self,
        options: DistillOptions,
        folder: Path,
        lm: LanguageModel,
        *,
        tell: Callable[[str], None] = lambda line: None,
        shown: Callable[[], AbstractContextManager[Progress]] = unseen,
    ) -> None:
        self._options, self._folder, self._lm = options, folder, lm
        self._stages = TextStages(options, folder, lm, last=options.until, tell=tell, shown=shown)
        self._ledger = self._stages.ledger

    def finish(self, opened: Callable[[Path], LanguageModel], command: str) -> Finished | None:
        """Run what is missing; None where the options say to stop before the end (`until`).

        opened: loads a student. command: for the card.
        """
        text, held_out = self._stages.conversations()
        if self._options.until == "responses":
            return None
        if not self._ledger.is_done("training"):
            self._train(text, held_out)
        if self._options.until == "training":
            return None
        path = self._folder / (FILE if self._ledger.facts("training")["no_gguf"] is None else FOLDER)
        if not self._ledger.is_done("check"):
            self._check(path, held_out, opened)
        result: dict[str, Any] = json.loads((self._folder / RESULT).read_text(encoding="utf-8"))
        save(self._folder / CARD, card(result, command))
        save(self._folder / PLOT, plot(Log(self._folder / LOG).entries, f"student of {self._lm.path.name}"))
        return Finished(path, result)

    # Training.

    def _train(self, text: Sequence[Conversation], held_out: Sequence[Conversation]) -> None:
        options, ledger, lm = self._options, self._ledger, self._lm
        made: list[Student] = []

        def prepare(device: torch.device, seconds: float) -> Distilling:
            student, chosen = student_of(options, lm, text, device, ledger.facts("training").get("chosen", {}))
            ledger.note("training", chosen=chosen)
            made.append(student)
            settings = _settings(options, seconds, on_cpu=device.type == "cpu")
            likely, ends = self._folder / "training" / "likely", sorted(lm.loaded.eos_ids)
            own, target = student.network, target_on(device, lm)
            return Distilling(own, settings, text, held_out, target, likely, layers=student.layers, ends=ends)

        outcome, facts = learn(self._stages, prepare)
        (student,) = made
        name = f"{lm.path.stem} distilled to {student.network.config.num_layers} layers"
        no_gguf = student.write(self._folder, load_tensors(outcome.path), name, options.format)
        if no_gguf is not None:
            self._stages.tell(f"no GGUF file is written: {no_gguf}")
        ledger.finish(
            "training",
            **facts,
            no_gguf=no_gguf,
            layers=None if student.layers is None else list(student.layers),
            feed_forward_width=student.shape.feed_forward_width,
        )
        assert outcome.before is not None
        self._stages.tell(f"training: {outcome.steps} steps; {_compared(outcome.before, outcome.measured)}")

    # Measuring.

    def _check(self, path: Path, held_out: Sequence[Conversation], opened: Callable[[Path], LanguageModel]) -> None:
        timer = self._stages.begin("check")
        with self._stages.shown() as show:
            show(0, 1, "measuring the student")
            student = opened(path)
            greedy = [own for own in held_out if not own.sampled] or list(held_out)
            measured = measure(
                self._lm, student, path, greedy[: self._options.num_checked], self._options.max_draft,
                lambda: timer.is_left,
            )  # fmt: skip
            student.close()
        facts = self._ledger.facts("training")
        names = ("layers", "feed_forward_width", "before", "measured", "steps", "positions", "device")
        result = {
            "options": {name: value for name, value in self._options.as_dict().items() if value is not None},
            **{name: facts[name] for name in names},
            **measured.as_dict(),
            "seconds": self._ledger.seconds("training"),
            "origin": provenance(self._lm),
        }
        save(self._folder / RESULT, json.dumps(result, ensure_ascii=False, indent=1) + "\n")
        timer.keep()
        self._ledger.finish("check")


def _settings(options: DistillOptions, seconds: float, *, on_cpu: bool) -> DistillSettings:
    """Return what the trainer is told; a budget in steps goes before one in time."""
    settings = DistillSettings(
        use=options.use,
        objective=options.objective,
        on_policy=options.own_text,
        on_policy_tokens=options.on_policy_tokens,
        hidden=options.hidden,
        top_k=options.top_k,
        trains_embedding=options.train_embedding,
        max_draft=options.max_draft,
        **options.length(seconds, on_cpu=on_cpu),
    )
    return settings if options.learning_rate is None else replace(settings, matrix_rate=options.learning_rate)


def _compared(before: Closeness, after: Closeness) -> str:
    return (
        f"agreement {after.top1:.1%} ({before.top1:.1%} before), perplexity {after.perplexity:.2f} (teacher "
        f"{after.teacher_perplexity:.2f}), {after.tokens_per_step:.2f} simulated tokens per step"
    )
