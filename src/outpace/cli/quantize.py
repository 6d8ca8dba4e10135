"""The command `quantize`: a model as a small GGUF file."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, get_args

import typer

from outpace.cli.progress import progress_on_stderr
from outpace.cli.streams import put
from outpace.types import Quantization

FORMATS = "|".join(get_args(Quantization))


def quantize(
    model: Annotated[str, typer.Argument(help="A Hugging Face folder, a hub id, or a GGUF file of F32, F16 or BF16.")],
    output: Annotated[Path, typer.Argument(help="The GGUF file to write.", metavar="OUT.gguf")],
    format: Annotated[str, typer.Option("--format", "-f", help="Format of most matrices.", metavar=FORMATS)] = "q4_k",
    threads: Annotated[int | None, typer.Option(help="Number of CPU threads. (default: all cores)")] = None,
) -> None:
    """Write a model as a GGUF file with small weights, which llama.cpp loads too.

    Vectors stay in F32, and the output matrix and some others get more bits: docs/models.md says which. The file is
    written tensor by tensor, whole or not at all.
    """
    from outpace.api import quantize as run

    with progress_on_stderr(at_once=False) as show:
        written = run(
            model,
            output,
            format,  # type: ignore[arg-type]  # checked in there
            threads=threads,
            progress=lambda done, total: show(done, total, f"{done / 1e6:.0f} of {total / 1e6:.0f} MB written"),
        )
    kinds = ", ".join(f"{count} {name}" for name, count in written.formats.items())
    put(f"{written.path}: {written.num_bytes / 1e6:.1f} MB; tensors: {kinds}")
    put(f"use it: {shlex.join(['outpace', 'chat', '-m', str(written.path)])}")
