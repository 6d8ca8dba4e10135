"""The table of commands."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated

import typer

from outpace.cli.streams import put

# The module of each command below `outpace.cli`, which has it under its name: a function, or a table of further ones.
_MODULES = {
    "generate": "generate",
    "chat": "chat",
    "explain": "explain",
    "certify": "certify",
    "bench": "bench",
    "drafter": "drafter",
    "train": "train",
    "distill": "distill",
    "quantize": "quantize",
    "pull": "models",
    "models": "models",
    "version": "models",
}


def command_line(asked: str | None = None) -> typer.Typer:
    """Return the commands: all, or the one that is asked for, so that it alone is imported."""
    app = typer.Typer(
        name="outpace",
        help="Run language models on a CPU, several tokens per step, without changing a token of their text.",
        epilog="Try: outpace generate 'Name three rivers in Europe.'",
        no_args_is_help=False,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["--help", "-h"]},
    )
    app.callback(invoke_without_command=True)(_outpace)
    for name in [asked] if asked in _MODULES else _MODULES:
        command = getattr(import_module(f"outpace.cli.{_MODULES[name]}"), name)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command()(command)
    return app


def _outpace(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Show the version or, without a command, the help text."""
    if show_version:
        from outpace.cli.models import version

        version()
        raise typer.Exit
    if context.invoked_subcommand is None:
        put(context.get_help())
