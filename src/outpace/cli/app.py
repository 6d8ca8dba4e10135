"""The table of commands."""

from __future__ import annotations

from typing import Annotated

import typer

from outpace.cli.bench import bench
from outpace.cli.certify import certify
from outpace.cli.chat import chat
from outpace.cli.distill import distill
from outpace.cli.drafter import drafter
from outpace.cli.explain import explain
from outpace.cli.generate import generate
from outpace.cli.models import models, pull, version
from outpace.cli.quantize import quantize
from outpace.cli.streams import put
from outpace.cli.train import train

app = typer.Typer(
    name="outpace",
    help="Run language models on a CPU, several tokens per step, without changing a token of their text.",
    epilog="Try: outpace generate 'Name three rivers in Europe.'",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


@app.callback(invoke_without_command=True)
def outpace(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Show the version or, without a command, the help text."""
    if show_version:
        version()
        raise typer.Exit
    if context.invoked_subcommand is None:
        put(context.get_help())


app.command()(generate)
app.command()(chat)
app.command()(explain)
app.command()(certify)
app.add_typer(bench, name="bench")
app.add_typer(drafter, name="drafter")
app.command()(train)
app.add_typer(distill, name="distill")
app.command()(quantize)
app.command()(pull)
app.command()(models)
app.command()(version)
