"""Run all stages and leave what a user wants of them: the drafter, its card, its log and its plot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from outpace.api import LanguageModel
from outpace.measure.output_file import save
from outpace.measure.provenance import provenance
from outpace.models.checkpoint import open_checkpoint
from outpace.train.given import ADAPTER, DRAFTER
from outpace.train.joint.files import beside
from outpace.train.report.card import card
from outpace.train.report.forecast import Check
from outpace.train.report.log import Log
from outpace.train.report.plot import plot
from outpace.train.run import Run
from outpace.train.stages import LOG

CARD, PLOT, MODEL = "card.md", "plot.png", "model"


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished run: its drafter, and how the forecast of it compares with decoding.

    adapter: of the target, where that was tuned beside the drafter; model: its folder, if both were merged.
    """

    drafter: Path
    check: Check
    adapter: Path | None = None
    model: Path | None = None


def finish(run: Run, opened: Callable[[Path], LanguageModel], command: str) -> Finished:
    """Run what is missing of a run. opened: loads the target with a drafter's file. command: for the card."""
    text, held_out = run.conversations()
    trained = run.train(text, held_out)
    check = run.check(trained, held_out, opened)
    drafter, adapter, model = run.folder / DRAFTER, None, None
    data = trained.path.read_bytes()
    save(drafter, data)
    if run.options.joint:
        adapter = run.folder / ADAPTER
        save(adapter, beside(trained.path).read_bytes())
    if adapter is not None and run.options.merge:
        from outpace.train.joint.merged import write_merged  # brings PyTorch

        model = run.folder / MODEL
        if not (model / "config.json").exists():  # which is written last
            write_merged(model, open_checkpoint(run.lm.path), adapter)
    options, ledger = run.options, run.ledger
    save(run.folder / CARD, card(options, ledger, check, provenance(run.lm), command, len(data)))
    title = f"{options.kind} for {run.lm.path.name}"
    save(run.folder / PLOT, plot(Log(run.folder / LOG).entries, title))
    return Finished(drafter, check, adapter, model)
