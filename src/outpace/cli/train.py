"""The command `train`: from a model to its drafter, or to an adapter that fills several slots at once, measured."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outpace.cli.fields import Fields, Spelling, option_name, spelled_out
from outpace.cli.loading import Loading, open_model
from outpace.cli.progress import progress_on_stderr
from outpace.cli.streams import note, put
from outpace.errors import UsageError, one_of
from outpace.train.adapt.options import ADAPTING_NAMES, AdaptingOptions, AdaptOptions
from outpace.train.adapt.options import KINDS as ADAPTERS
from outpace.train.options import JOINT_NAMES, KINDS, JointOptions, TextOptions, TrainingOptions, TrainOptions

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
    without=frozenset({"kv", "context", "cache_tokens", "quantize", "drafter", "adapter", "pack_cache"}),
)
_PATHS = {
    "prompts": "File of prompts, one JSON value a line. (default: the target writes its own)",
    "texts": "Texts to train on as they are: plain text, JSON lines, or a corpus folder. (default: none)",
    "exclude": "File of prompts that training must not see, such as a benchmark's. (default: none)",
    "start": "Drafter or adapter to continue: its file, or the folder of an earlier run. (default: none)",
}


def training_fields() -> Fields:
    """Return the options of a training, a drafter's or an adapter's."""
    return Fields(
        {
            TextOptions: "Text",
            TrainingOptions: "Training",
            JointOptions: "Target tuned beside its heads (medusa)",
            AdaptingOptions: "Adapters (diffusion, jacobi)",
        },
        spellings={
            name: Spelling(Path, about, option="--from" if name == "start" else None) for name, about in _PATHS.items()
        }
        | {"max_draft": Spelling(int, "Maximum draft tokens in a step, for the forecast and its check. (default: 4)")},
        defaults={"max_draft": None},  # so that whoever gives it to an adapter, which has no such step, is told
    )


@spelled_out
def train(
    kind: Annotated[
        str,
        typer.Argument(
            help="What to train: a drafter (eagle, medusa, block) or an adapter (diffusion, jacobi).",
            metavar="|".join((*KINDS, *ADAPTERS)),
        ),
    ],
    target: Annotated[Mapping[str, Any], _TARGET],
    options: Annotated[Mapping[str, Any], training_fields()],
    output: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run: its state, and its result.")],
) -> None:
    """Train a drafter or an adapter for a model, on what the model itself writes, and measure it.

    The folder keeps every stage, so the same command goes on after Ctrl-C or a crash. Exit code 1 if the forecast of
    a drafter and decoding with it differ by more than 5 %. Needs PyTorch, which the package's extra "train" brings:
    docs/training.md. medusa --joint tunes the target too (Medusa-2): it is another model then, and what is decoded with
    it is lossy relative to the original.
    """
    from outpace.train import extra

    given = {name: value for name, value in options.items() if value is not None}
    one_of("kind", kind, (*KINDS, *ADAPTERS))
    _refuse_others(kind, given)
    chosen = (AdaptOptions if kind in ADAPTERS else TrainOptions)(kind=kind, **given)  # type: ignore[arg-type]
    extra.require()
    if output.exists() and not output.is_dir():
        raise UsageError(f"--out: {str(output)!r} is a file: name a folder")
    if isinstance(chosen, AdaptOptions):
        _adapter(chosen, target, output)
    else:
        _drafter(chosen, target, output)


def _refuse_others(kind: str, given: Mapping[str, Any]) -> None:
    """Raise UsageError for an option that this kind has no use for."""
    of_drafters = ("max_draft", *JOINT_NAMES)
    for name in of_drafters if kind in ADAPTERS else ADAPTING_NAMES:
        if name == "rank" and kind == "medusa":
            continue  # of a target's adapter
        if name in given:
            owners = ", ".join(KINDS if kind in ADAPTERS else ADAPTERS)
            owners = "medusa" if name in JOINT_NAMES else owners
            raise UsageError(f"{option_name(name)} would be ignored by {kind} (it belongs to {owners}): leave it out")


def _drafter(chosen: TrainOptions, target: Mapping[str, Any], output: Path) -> None:
    from outpace.train.joint.files import beside
    from outpace.train.report.card import check_table, divergence_table, verdict
    from outpace.train.report.outcome import finish
    from outpace.train.run import Run

    def opened(drafter: Path) -> LanguageModel:
        return open_model(**target, drafter=drafter, adapter=beside(drafter) if chosen.joint else None)

    run = Run(chosen, output, open_model(**target), tell=note, shown=progress_on_stderr)
    if chosen.until is not None:
        run.stop_behind(chosen.until)
        _tell_stop(output, chosen.until)
        return
    finished = finish(run, opened, _command())
    put(check_table(finished.check))
    put(verdict(finished.check))
    put(f"drafter: {finished.drafter} (its card: {output / 'card.md'})")
    if finished.adapter is None:
        put(f"use it: {_usage(target['model'], '--drafter', finished.drafter)}")
    else:
        put(divergence_table(run.ledger))
        put(f"adapter: {finished.adapter}. With it the target is another model: lossy relative to the original")
        both = ("--adapter", finished.adapter, "--drafter", finished.drafter)
        put(f"use both: {_usage(target['model'], *both)}")
    if finished.model is not None:
        put(f"or merged: {_usage(str(finished.model), '--drafter', finished.drafter)}")
    if not finished.check.agrees:
        raise typer.Exit(1)


def _adapter(chosen: AdaptOptions, target: Mapping[str, Any], output: Path) -> None:
    from outpace.train.adapt.report import measured_table
    from outpace.train.adapt.run import AdaptRun

    run = AdaptRun(chosen, output, open_model(**target), tell=note, shown=progress_on_stderr)
    if chosen.until is not None:
        run.stop_behind(chosen.until)
        _tell_stop(output, chosen.until)
        return
    finished = run.finish(_command())
    put(measured_table(chosen.kind, finished.before, finished.measured))
    strategy = "block_diffusion" if chosen.kind == "diffusion" else "jacobi"
    if chosen.weights == "full":
        put(f"model: {finished.path} (its card: {output / 'card.md'})")
        put(f"use it: {_usage(str(finished.path), '-s', strategy)}")
        return
    put(f"adapter: {finished.path} (its card: {output / 'card.md'})")
    put(f"use it: {_usage(target['model'], '--adapter', finished.path, '-s', strategy)}")


def _tell_stop(output: Path, last: str) -> None:
    put(f"{output}: {last} done. The same command goes on, here or wherever the folder is taken")


def _command() -> str:
    """Return the command line, for the card."""
    return shlex.join(["outpace", *sys.argv[1:]])


def _usage(model: str, *given: object) -> str:
    return shlex.join(["outpace", "generate", "-m", model, *map(str, given), "Name three rivers in Europe."])
