"""The stages of `outpace distill`, each kept in the run's folder as it goes, and skipped where it is finished.

    prompts, held-out, responses    text, as in `train.stages`
    training                        training/, log.jsonl -> student/ (a Hugging Face folder), student.gguf
    check                           result.json: speed, tasks, and real decoding with the student as draft model

`card.md` says it in words. A run that was killed goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from outpace.api import LanguageModel
from outpace.measure.output_file import save
from outpace.measure.progress import Progress
from outpace.measure.provenance import provenance
from outpace.train.distill.measure import Closeness
from outpace.train.distill.options import DistillOptions
from outpace.train.distill.outcome import measure
from outpace.train.distill.report import card
from outpace.train.distill.settings import DistillSettings
from outpace.train.distill.student import student_of
from outpace.train.distill.trainer import DistillReport, distil
from outpace.train.report.log import Log
from outpace.train.stages import KEEP_SECONDS, LOG, TextStages, unseen
from outpace.train.text.corpus import Conversation
from outpace.train.training import device_of, name_of, target_on

RESULT, CARD = "result.json", "card.md"
FOLDER, FILE = "student", "student.gguf"
_TOKENS = {True: 4096, False: 24576}  # of a step, on the CPU and elsewhere


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
        return Finished(path, result)

    # Training.

    def _train(self, text: Sequence[Conversation], held_out: Sequence[Conversation]) -> None:
        options, ledger = self._options, self._ledger
        device = device_of(options.device)
        if device.type == "cpu":
            torch.set_num_threads(self._lm.runner.ops.threads)
        timer = self._stages.begin("training")
        log = Log(self._folder / LOG)
        with self._stages.shown() as show:
            show(0, 1000, "choosing the student")
            student, chosen = student_of(options, self._lm, text, device, ledger.facts("training").get("chosen", {}))
            ledger.note("training", chosen=chosen)

            def report(step: DistillReport) -> None:
                log.add(asdict(step))
                timer.keep(at_least=KEEP_SECONDS)
                show(int(1000 * step.done), 1000, _in_words(step))

            outcome = distil(
                student.network,
                _settings(options, timer.allowed, on_cpu=device.type == "cpu"),
                text,
                held_out,
                target_on(device, self._lm),
                self._folder / "training",
                layers=student.layers,
                ends=sorted(self._lm.loaded.eos_ids),
                report=report,
            )
        timer.keep()
        name = f"{self._lm.path.stem} distilled to {student.network.config.num_layers} layers"
        no_gguf = student.write(self._folder, outcome.state, name, options.format)
        if no_gguf is not None:
            self._stages.tell(f"no GGUF file is written: {no_gguf}")
        ledger.finish(
            "training",
            no_gguf=no_gguf,
            layers=None if student.layers is None else list(student.layers),
            feed_forward_width=student.shape.feed_forward_width,
            before=outcome.before.as_dict(),
            measured=outcome.measured.as_dict(),
            steps=outcome.steps,
            positions=sum(entry["positions"] for entry in log.entries),
            device=name_of(device),
        )
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
        steps=options.steps,
        budget_s=seconds if options.steps is None else None,
        tokens_per_batch=options.batch_tokens or _TOKENS[on_cpu],
        seed=options.seed,
        evaluations=options.evaluations,
    )
    return settings if options.learning_rate is None else replace(settings, matrix_rate=options.learning_rate)


def _in_words(step: DistillReport) -> str:
    measured = "" if step.measured is None else f", {step.measured.top1:.1%} agreement"
    return f"step {step.step}, loss {step.loss:.3f}{measured}"


def _compared(before: Closeness, after: Closeness) -> str:
    return (
        f"agreement {after.top1:.1%} ({before.top1:.1%} before), perplexity {after.perplexity:.2f} (teacher "
        f"{after.teacher_perplexity:.2f}), {after.tokens_per_step:.2f} simulated tokens per step"
    )
