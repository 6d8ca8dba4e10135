"""The table of commands."""

from __future__ import annotations

from importlib import import_module
from inspect import cleandoc
from typing import Annotated, Any

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
_HELP = ["--help", "-h"]


def command_line(asked: str | None = None) -> Any:
    """Return the commands, as click has them: all, or the one that is asked for, so that it alone is imported."""
    app = typer.Typer(
        name="outpace",
        help="Run language models on a CPU, several tokens per step, without changing a token of their text.",
        epilog="Try: outpace generate 'Name three rivers in Europe.'",
        no_args_is_help=False,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": _HELP},
    )
    app.callback(invoke_without_command=True)(_outpace)
    for name in [asked] if asked in _MODULES else _MODULES:
        command = getattr(import_module(f"outpace.cli.{_MODULES[name]}"), name)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command()(command)
    return _readable(typer.main.get_command(app))


def _readable(command: Any) -> Any:
    """Return a command whose help text has paragraphs without line breaks, and flags without a type.

    By itself typer joins the lines of the first paragraph alone, and writes `--raw <bool>` of what takes no value.
    """
    command.help = "\n\n".join(" ".join(part.split()) for part in cleandoc(command.help or "").split("\n\n"))
    for parameter in command.get_params(typer.Context(command, help_option_names=_HELP)):
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    for own in getattr(command, "commands", {}).values():
        _readable(own)
    return command


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
