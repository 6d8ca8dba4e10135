"""The command `train`: from a model to its drafter, measured."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outpace.cli.fields import Fields, Spelling, spelled_out
from outpace.cli.loading import Loading, open_model
from outpace.cli.progress import progress_on_stderr
from outpace.cli.streams import note, put
from outpace.errors import UsageError
from outpace.train.options import KINDS, TextOptions, TrainingOptions, TrainOptions

if TYPE_CHECKING:
    from outpace.api import LanguageModel

_TARGET = Fields(
    {Loading: "Model"},
    short={"model": "-m"},
    spellings={
        "model": Spelling(
            str, "Model to train for: a known name, a GGUF file, a folder or a hub id.", option="--target"
        )
    },
    without=frozenset({"kv", "context", "cache_tokens", "quantize", "drafter"}),
)
_PATHS = {
    "prompts": "File of prompts, one JSON value a line. (default: the target writes its own)",
    "texts": "Texts to train on as they are: plain text, JSON lines, or a corpus folder. (default: none)",
    "exclude": "File of prompts that training must not see, such as a benchmark's. (default: none)",
    "start": "Drafter to continue: its file, or the folder of an earlier run. (default: none)",
}


def training_fields() -> Fields:
    """Return the options of a training."""
    return Fields(
        {TextOptions: "Text", TrainingOptions: "Training"},
        spellings={
            name: Spelling(Path, about, option="--from" if name == "start" else None) for name, about in _PATHS.items()
        },
    )


@spelled_out
def train(
    kind: Annotated[str, typer.Argument(help="Kind of drafter: eagle, medusa or block.", metavar="|".join(KINDS))],
    target: Annotated[Mapping[str, Any], _TARGET],
    options: Annotated[Mapping[str, Any], training_fields()],
    output: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run: its state, and its result.")],
) -> None:
    """Train a drafter for a model, on what the model itself writes, and measure it.

    The folder keeps every stage, so the same command goes on after Ctrl-C or a crash. Exit code 1 if the forecast of
    the drafter and decoding with it differ by more than 5 %. Needs PyTorch, which the
    package's extra "train" brings: docs/training.md.
    """
    from outpace.train import extra

    chosen = TrainOptions(kind=kind, **options)  # type: ignore[arg-type]  # checked in there
    extra.require()
    from outpace.train.report.card import check_table, verdict
    from outpace.train.report.outcome import finish
    from outpace.train.stages import Run

    if output.exists() and not output.is_dir():
        raise UsageError(f"--out: {str(output)!r} is a file: name a folder")

    def opened(drafter: Path) -> LanguageModel:
        return open_model(**target, drafter=drafter)

    lm = open_model(**target)
    run = Run(chosen, output, lm, tell=note, shown=progress_on_stderr)
    if chosen.until is not None:
        run.stop_behind(chosen.until)
        put(f"{output}: {chosen.until} done. The same command goes on, here or wherever the folder is taken")
        return
    finished = finish(run, opened, _command())
    put(check_table(finished.check))
    put(verdict(finished.check))
    put(f"drafter: {finished.drafter} (its card: {output / 'card.md'})")
    put(f"use it: {_usage(target['model'], finished.drafter)}")
    if not finished.check.agrees:
        raise typer.Exit(1)


def _command() -> str:
    """Return the command line, for the card."""
    return shlex.join(["outpace", *sys.argv[1:]])


def _usage(model: str, drafter: Path) -> str:
    return shlex.join(["outpace", "generate", "-m", model, "--drafter", str(drafter), "Name three rivers in Europe."])
