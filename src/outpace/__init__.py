"""Outpace: language models generate faster, without changing a token.

import outpace

lm = outpace.load("smollm2-135m")
print(lm.generate("The capital of France is", max_new_tokens=20, strategy="ngram").text)
"""

from __future__ import annotations

from outpace.version import VERSION as __version__

TYPE_CHECKING = False  # type checkers take it to be true; `typing` alone would double the time of this import
if TYPE_CHECKING:
    from outpace.api import Chat, Chunk, LanguageModel, Quantised, Result, Stream, load, quantize
    from outpace.drafters.protocol import Drafter, SequenceView
    from outpace.errors import (
        CacheError,
        ContextError,
        DownloadError,
        DrafterError,
        EngineError,
        OutpaceError,
        TokenizerError,
        UsageError,
        WeightsError,
    )
    from outpace.types import Constraint, LogitsProcessor, TokenLogprob
    from outpace.types.tree import EMPTY, DraftTree

__all__ = [
    "EMPTY",
    "CacheError",
    "Chat",
    "Chunk",
    "Constraint",
    "ContextError",
    "DownloadError",
    "DraftTree",
    "Drafter",
    "DrafterError",
    "EngineError",
    "LanguageModel",
    "LogitsProcessor",
    "OutpaceError",
    "Quantised",
    "Result",
    "SequenceView",
    "Stream",
    "TokenLogprob",
    "TokenizerError",
    "UsageError",
    "WeightsError",
    "__version__",
    "load",
    "quantize",
]

_HOMES = ("outpace.errors", "outpace.types.tree", "outpace.types", "outpace.drafters.protocol", "outpace.api")


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, so that the command line starts, and stops, without delay."""
    if name in __all__:
        from importlib import import_module

        for home in _HOMES:
            if hasattr(module := import_module(home), name):
                globals()[name] = found = getattr(module, name)
                return found
    raise AttributeError(f"module 'outpace' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
