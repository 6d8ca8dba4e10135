"""One run of `outpace train diffusion` or `train jacobi`: the text's stages, training, and what a user wants of it.

prompts, held-out, responses   as of a drafter (`train/stages.py`)
training                       training/       checkpoints; log.jsonl
                               adapter.gguf, card.md, plot.png
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from outpace.api import LanguageModel
from outpace.errors import UsageError
from outpace.measure.output_file import save
from outpace.measure.progress import Progress
from outpace.measure.provenance import provenance
from outpace.models.checkpoint import open_checkpoint
from outpace.train.adapt.adapting import Adapting
from outpace.train.adapt.export import write_model
from outpace.train.adapt.learner import Learner
from outpace.train.adapt.measure import Measured, measured_of
from outpace.train.adapt.options import AdaptOptions
from outpace.train.adapt.report import card, scored
from outpace.train.adapt.settings import AdaptSettings
from outpace.train.given import ADAPTER
from outpace.train.networks.transformer import Dequantised
from outpace.train.report.log import Log
from outpace.train.report.outcome import CARD, PLOT
from outpace.train.report.plot import plot
from outpace.train.stages import LOG, TextStages, unseen
from outpace.train.target import identity_of
from outpace.train.text.corpus import Conversation
from outpace.train.training import learn
from outpace.weights.adapter import open_adapter

MODEL = "model"  # the folder of a result whose weights have all learned
_MEASURED = {True: 512, False: 12288}  # rows: each threshold takes up to a block of passes over them


@dataclass(frozen=True, slots=True)
class FinishedAdapter:
    """A finished run: its adapter, and what the network brought before training and brings now."""

    path: Path
    before: Measured
    measured: Measured


class AdaptRun:
    """A run in a folder, each stage kept as it goes. tell, shown: as of the text's stages."""

    def __init__(
        self,
        options: AdaptOptions,
        folder: Path,
        lm: LanguageModel,
        *,
        tell: Callable[[str], None] = lambda line: None,
        shown: Callable[[], AbstractContextManager[Progress]] = unseen,
    ) -> None:
        self.options, self.folder, self.lm = options, folder, lm
        self._text = TextStages(options, folder, lm, last=options.until or "training", tell=tell, shown=shown)
        self.ledger = self._text.ledger
        self._start = None if options.start is None else adapter_to_continue(options.start, options, lm)

    def stop_behind(self, last: str) -> None:
        """Run what is missing up to a stage; the folder may then go on elsewhere."""
        text, held_out = self._text.conversations()
        if last == "training":
            self.train(text, held_out)

    def finish(self, command: str) -> FinishedAdapter:
        """Run what is missing, and write the result with its card and its plot. command: for the card."""
        trained = self.train(*self._text.conversations())
        path = self._write(trained.path)
        origin, num_bytes = provenance(self.lm), trained.path.stat().st_size
        text = card(self.options, self.ledger, trained.before, trained.measured, origin, command, num_bytes)
        save(self.folder / CARD, text)
        title = f"{self.options.kind} for {self.lm.path.name}"
        save(self.folder / PLOT, plot(Log(self.folder / LOG).entries, title))
        return FinishedAdapter(path, trained.before, trained.measured)

    def _write(self, trained: Path) -> Path:
        """Write the result where a user finds it: an adapter's file, or a model's folder."""
        if self.options.weights != "full":
            path = self.folder / trained.name
            save(path, trained.read_bytes())
            return path
        settings = settings_of(self.options, 1.0, on_cpu=True)
        mask_token = self.ledger.facts("training")["mask_token"]
        write_model(self.folder / MODEL, open_checkpoint(self.lm.path), trained, settings, mask_token)
        return self.folder / MODEL

    def train(self, text: Sequence[Conversation], held_out: Sequence[Conversation]) -> FinishedAdapter:
        """Return the best adapter of the training, which goes on from its last checkpoint."""
        if not self.ledger.is_done("training"):
            self._train(text, held_out)
        facts = self.ledger.facts("training")
        return FinishedAdapter(
            self.folder / facts["path"], measured_of(facts["before"]), measured_of(facts["measured"])
        )

    def _train(self, text: Sequence[Conversation], held_out: Sequence[Conversation]) -> None:
        mask_token = self._mask_token(text, held_out)

        def prepare(device: torch.device, seconds: float) -> Adapting:
            settings = settings_of(self.options, seconds, on_cpu=device.type == "cpu")
            tensors = Dequantised(open_checkpoint(self.lm.path).tensors)
            learner = Learner(self.lm.config, tensors, settings, device, mask_token)
            ends, identity = self.lm.loaded.eos_ids, identity_of(self.lm)
            return Adapting(learner, settings, text, held_out, ends, identity, self._start)

        outcome, facts = learn(self._text, prepare)
        self.ledger.finish("training", **facts, mask_token=mask_token)
        self._text.tell(
            f"training: {outcome.steps} steps; {outcome.score:.2f} {scored(self.options.kind, outcome.measured)} "
            f"({outcome.score_before:.2f} before)"
        )

    def _mask_token(self, text: Sequence[Conversation], held_out: Sequence[Conversation]) -> int:
        """Return the token that stands for a masked slot: one that no text has, or one behind the vocabulary."""
        size = self.lm.config.vocab_size
        if self.options.kind == "diffusion" and self.options.weights == "full":
            return unused_token([text, held_out], size)
        return size


def adapter_to_continue(path: Path, options: AdaptOptions, lm: LanguageModel) -> Path:
    """Return the file of the adapter to continue. Raises UsageError if it is of another kind, rank or model."""
    path = path / ADAPTER if path.is_dir() else path
    checkpoint = open_adapter(path)
    if checkpoint.kind != options.kind:
        raise UsageError(f"--from: {path} is an adapter of kind {checkpoint.kind}, and {options.kind} is to be trained")
    rank = settings_of(options, 1.0, on_cpu=True).rank
    if checkpoint.rank != rank:
        raise UsageError(f"--from: {path} has rank {checkpoint.rank}, and {rank} is to be trained: give --rank")
    checkpoint.check_target(lm.name, identity_of(lm).traits)
    return path


def unused_token(texts: Sequence[Sequence[Conversation]], vocab_size: int) -> int:
    """Return the last token that occurs in none of these texts. Raises UsageError where all of them do."""
    is_used = np.zeros(vocab_size, np.bool_)
    for text in texts:
        for own in text:
            is_used[own.tokens] = True
    if is_used.all():
        raise UsageError("every token of the vocabulary occurs in the text, so none can stand for a masked slot")
    return int(np.flatnonzero(~is_used)[-1])


def settings_of(options: AdaptOptions, seconds: float, *, on_cpu: bool) -> AdaptSettings:
    """Return the trainer's settings, for so many seconds or the options' number of steps."""
    chosen = options.chosen
    if options.learning_rate is not None:
        chosen["rate"] = options.learning_rate
    if options.rank is not None:
        chosen["alpha"] = float(options.rank)  # a scale of 1
    return AdaptSettings(
        options.kind,
        **options.length(seconds, on_cpu=on_cpu),
        measured_rows=_MEASURED[on_cpu],
        **chosen,
    )
