"""Errors as a reader of the command line needs them: one line, and the options by their names here."""

from __future__ import annotations

import dataclasses
import re

from outpace.cli.fields import option_name


def told(error: BaseException) -> str:
    """Return what an error says, in one line; the library's `max_new_tokens` is called --max-new-tokens."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    if isinstance(error, MemoryError):
        return "there is not enough memory: try a smaller --context or --cache-tokens, or a smaller model"
    return with_options(" ".join(str(error).split()))


def with_options(message: str) -> str:
    """Replace the library's names of options: at the beginning, before "=...", and where no other word is like them.

    A flag that the library calls slide=True is --slide here.
    """
    names = "|".join(sorted(_names(), key=len, reverse=True))
    unmistakable = "|".join(name for name in _names() if "_" in name and name != "draft_model")  # also a strategy
    for pattern in (
        rf"(?<![\w-])({names})=True\b",
        rf"^({names})(?=(?:\[\d+\])? (?:must|has no effect)|=)",
        rf"(?<![\w-])({names})(?==(?:\.\.\.|PATH\b))",
        rf"(?<![\w'\"-])({unmistakable})(?![\w'\"])",
    ):
        message = re.sub(pattern, lambda match: option_name(match[1]), message)
    return re.sub(r"(--[a-z-]+)=(?=\S)", r"\1 ", message)


def _names() -> list[str]:
    from outpace.cli.loading import Loading
    from outpace.cli.writing import generation_fields
    from outpace.train.adapt.options import ADAPTING_NAMES
    from outpace.train.options import OPTION_NAMES

    loading = [field.name for field in dataclasses.fields(Loading)]
    return list(dict.fromkeys([*generation_fields().parameters(), *loading, *OPTION_NAMES, *ADAPTING_NAMES]))
