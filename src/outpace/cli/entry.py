"""Where the command line begins and ends: arguments, exit codes, and errors as one line."""

from __future__ import annotations

import os
import sys

from outpace.cli.exit_codes import INTERRUPTED, READER_GONE

TYPE_CHECKING = False  # as in the package: until `main` runs, Ctrl-C would end in a traceback
if TYPE_CHECKING:
    from typing import NoReturn

_COLLECTED = 100_000  # objects between two looks for garbage: a vocabulary has as many, and they all stay
_WITH_TORCH = ("train", "distill")  # commands that multiply matrices outside the ops, perhaps with NumPy's library


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line, and leave with an exit code.

    0: done. 1: a text differs where it must not (`certify`, `bench`). 2: an error, told in one line with its cause
    and cure; --debug shows its traceback. 130: Ctrl-C. 141: nobody reads standard output any more. Without
    `arguments`, those of this process are taken, and its standard streams are made safe.
    """
    owns_process = arguments is None
    if owns_process:
        import gc

        gc.set_threshold(_COLLECTED)
        if sys.argv[1:2] not in [[name] for name in _WITH_TORCH]:
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy starts them, and nobody would use them
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments, owns_process)
    except KeyboardInterrupt:
        code = INTERRUPTED
    if owns_process:
        import signal

        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C cannot do more
        gc.freeze()  # nothing is looked through for garbage on the way out
    sys.exit(code)


def _run(arguments: list[str], owns_process: bool) -> int:
    """Import what is needed, run the command, and return the exit code."""
    import warnings

    from outpace.cli import streams
    from outpace.errors import OutpaceError

    arguments, debug = _without_debug(arguments)
    warnings.showwarning = lambda message, *rest: streams.note(f"warning: {' '.join(str(message).split())}")
    try:
        if owns_process:
            streams.own_standard_streams()
        streams.escape_what_does_not_fit()
        code = _invoke(arguments)
        streams.put("", end="")
        return code
    except (OutpaceError, OSError, MemoryError) as error:
        if isinstance(error, BrokenPipeError) and error.filename is None:
            return READER_GONE
        if debug:
            raise
        from outpace.cli.messages import told

        streams.note(f"error: {told(error)}")
        return 2
    finally:
        streams.settle()


def _without_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """Take --debug out, wherever it stands: it is added to a command that has failed."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [argument for argument in arguments[:end] if argument != "--debug"]
    return kept + arguments[end:], len(kept) < end


def _invoke(arguments: list[str]) -> int:
    """Run the command; what the arguments get wrong is an error like any other."""
    import typer

    from outpace.cli.app import command_line
    from outpace.errors import UsageError

    command = command_line(arguments[0] if arguments else None)
    try:
        with command.make_context("outpace", arguments) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except Exception as error:
        if not hasattr(error, "format_message"):  # of click, which typer has or brings along
            raise
        name = getattr(getattr(error, "ctx", None), "command_path", "outpace")
        message = error.format_message().rstrip(".")
        if name == "outpace generate" and "extra argument" in message:
            message += ": put the prompt in quotes"
        raise UsageError(f"{message} (`{name} --help` lists what there is)") from error
    return 0
