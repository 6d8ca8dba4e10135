"""What commands share: options, the console, progress bars, opening a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from outpace.api import LanguageModel

Model = Annotated[
    str, typer.Option("--model", "-m", help="A known name, a GGUF file, a Hugging Face folder or a hub id.")
]
Threads = Annotated[int | None, typer.Option(help="Threads of the arithmetic.  [default: all cores]")]
Ops = Annotated[str | None, typer.Option(help="native (C++) or reference (NumPy).  [default: the best there is]")]
KV = Annotated[str, typer.Option(help="Storage of keys and values: f32, bf16 or int8.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def console(*, stderr: bool = True) -> Console:
    """Return a console; what is not the product of a command goes to stderr."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


@contextmanager
def fetching(model: str) -> Iterator[Callable[[int, int], None] | None]:
    """Give the callback that shows a bar on stderr, where a known model has to be fetched first."""
    from outpace.weights.catalog import KNOWN

    if model not in KNOWN or KNOWN[model].present:
        yield None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("fetching {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console(), transient=True) as bar:
        task = bar.add_task(model, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def ticking() -> Iterator[Callable[[int, int, str], None]]:
    """Give progress(done, total, what), to be called before each piece of work: a bar with the time that is left."""
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("left:"), TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )  # fmt: skip
    with Progress(*columns, console=console(), transient=True) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)


def open_model(model: str, **settings: Any) -> LanguageModel:
    """Load a model, fetched first where it is a known one that is not here."""
    from outpace.api import load

    with fetching(model) as progress:
        return load(model, progress=progress, **settings)
