"""The commands `distill` and `distill report`: a smaller model out of a larger one, and several of them compared."""

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
from outpace.train.distill.options import DistillOptions, StudentOptions
from outpace.train.options import TextOptions, TrainingOptions

if TYPE_CHECKING:
    from outpace.api import LanguageModel

_TEACHER = Fields(
    {Loading: "Model"},
    short={"model": "-m"},
    spellings={
        "model": Spelling(
            str, "Model to learn from: a known name, a GGUF file, a folder or a hub id.", option="--teacher"
        )
    },
    without=frozenset({"kv", "context", "cache_tokens", "quantize", "drafter", "adapter", "pack_cache"}),
)
_PATHS = {
    "prompts": "File of prompts, one JSON value a line. (default: the teacher writes its own)",
    "texts": "Texts to train on as they are: plain text, JSON lines, or a corpus folder. (default: none)",
    "exclude": "File of prompts that training must not see, such as a benchmark's. (default: none)",
    "student": "Hugging Face folder of the teacher's vocabulary to start from. (default: --layers says)",
}
_OPTIONS = Fields(
    {StudentOptions: "Student", TextOptions: "Text", TrainingOptions: "Training"},
    spellings={
        **{name: Spelling(Path, about) for name, about in _PATHS.items()},
        "use": Spelling(
            str, "What it is for: a model of its own, or a draft model.", option="--as", metavar="student|draft"
        ),
    },
    without=frozenset({"start"}),
)

distill = typer.Typer(no_args_is_help=False)


@distill.callback(invoke_without_command=True)
@spelled_out
def commands(
    context: typer.Context,
    teacher: Annotated[Mapping[str, Any], _TEACHER],
    options: Annotated[Mapping[str, Any], _OPTIONS],
    output: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run: its state, and its result.")
    ] = None,
) -> None:
    """Make a smaller model out of a larger one, and measure it.

    The student is an ordinary Hugging Face folder and a GGUF file: a model of its own, which is lossy, or a draft model
    of its teacher (--draft-model), which changes no token. The folder keeps every stage, so the same command goes on
    after Ctrl-C or a crash. Needs PyTorch, which the package's extra "train" brings: docs/distillation.md.
    """
    if context.invoked_subcommand is not None:
        return
    from outpace.train import extra

    chosen = DistillOptions(**options)
    if output is None:
        raise UsageError("--out is missing: name the folder of the run")
    if output.exists() and not output.is_dir():
        raise UsageError(f"--out: {str(output)!r} is a file: name a folder")
    extra.require()
    from outpace.train.distill.report import card_table
    from outpace.train.distill.run import DistillRun

    def opened(path: Path) -> LanguageModel:
        return open_model(**{**teacher, "model": str(path)})

    run = DistillRun(chosen, output, open_model(**teacher), tell=note, shown=progress_on_stderr)
    finished = run.finish(opened, shlex.join(["outpace", *sys.argv[1:]]))
    if finished is None:
        put(f"{chosen.until}: done; the same command without --until goes on from {output}")
        return
    put(card_table(finished.result))
    put(f"student: {finished.student} (its card: {output / 'card.md'})")
    prompt = "Name three rivers in Europe."
    draft = ["--strategy", "draft_model", "--draft-model", str(finished.student)]
    put(f"use it: {shlex.join(['outpace', 'generate', '-m', str(finished.student), prompt])}")
    put(f"or as a draft model: {shlex.join(['outpace', 'generate', '-m', teacher['model'], *draft, prompt])}")


@distill.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of finished runs with one teacher.")],
    picture: Annotated[
        Path | None, typer.Option("--plot", help="PNG file of quality against speed. (default: none)")
    ] = None,
) -> None:
    """Compare students of one teacher: parameters, speed, quality, and what each brings as a draft model."""
    from outpace.measure.output_file import save
    from outpace.train.distill.report import frontier, read_results, table

    results = read_results(folders)
    put(table(results))
    if picture is not None:
        save(picture, frontier(results))
