"""What the commands that measure share: options, and lists within one argument."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outpace.errors import UsageError, unknown
from outpace.measure.output_file import OutputFile

if TYPE_CHECKING:
    from outpace.measure.prompts import TaskPrompt

Prompts = Annotated[
    Path | None,
    typer.Option(help="Prompts in Spec-Bench's format, one JSON object per line. (default: the built-in ones)"),
]
DraftModel = Annotated[str | None, typer.Option(help="The cheaper model for the strategy draft_model.")]


def prompts_from(path: Path | None) -> list[TaskPrompt]:
    """Return the prompts of the user's file, or the built-in ones; an error names the option."""
    from outpace.measure.prompts import load_prompts

    try:
        return load_prompts(path)
    except OSError as error:
        raise UsageError(f"--prompts: {str(path)!r} cannot be read ({error.strerror})") from error
    except UsageError as error:
        raise UsageError(f"--prompts: {error}") from error


def words(text: str, option: str, example: str) -> list[str]:
    """Return the words between commas. Raises UsageError where there is none."""
    found = [word.strip() for word in text.split(",") if word.strip()]
    if not found:
        raise UsageError(
            f"{option} needs at least one value, separated by commas (for example {example}); got {text!r}"
        )
    return found


def numbers(text: str, option: str, minimum: int) -> list[int]:
    """Return the whole numbers between commas, all of them at least `minimum`. Raises UsageError."""
    try:
        found = [int(word) for word in words(text, option, "1,2")]
    except UsageError:
        raise
    except ValueError:
        raise UsageError(f"{option} takes whole numbers separated by commas (for example 1,2); got {text!r}") from None
    for number in found:
        if number < minimum:
            raise UsageError(f"{option} must be at least {minimum}, got {number}")
    return found


def fractions(text: str, option: str) -> list[float]:
    """Return the numbers between commas, all of them in [0, 1]. Raises UsageError."""
    found = []
    for word in words(text, option, "0.7,0.9"):
        try:
            number = float(word)
        except ValueError:
            number = -1.0
        if not 0.0 <= number <= 1.0:
            raise UsageError(
                f"{option} takes numbers in [0, 1] separated by commas (for example 0.7,0.9); got {word!r}"
            )
        found.append(number)
    return found


def known(text: str, allowed: Iterable[str], option: str) -> list[str]:
    """Return the words between commas, all of them `allowed`. Raises UsageError."""
    names = tuple(allowed)
    found = words(text, option, ",".join(names))
    for word in found:
        if word not in names:
            raise unknown(f"value of {option}", word, names)
    return found


def at_least(minimum: int, **given: int) -> None:
    """Raise UsageError, naming the option, for a number below the minimum."""
    for name, number in given.items():
        if number < minimum:
            raise UsageError(f"--{name.replace('_', '-')} must be at least {minimum}, got {number}")


def output_folder(folder: Path, *names: str) -> None:
    """Make the folder for results, and refuse it now if files with these names could not be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output: {str(folder)!r} cannot be made a folder ({error.strerror})") from error
    for name in names:
        if not (folder / name).is_fifo():  # a pipe is opened once, when there is something for its reader
            OutputFile(folder / name).close()
