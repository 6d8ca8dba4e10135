"""Outpace: language models generate faster, without changing a token.

import outpace

lm = outpace.load("smollm2-135m")
print(lm.generate("The capital of France is", max_new_tokens=20, strategy="ngram").text)
"""

from outpace.api import Chat, Chunk, LanguageModel, Result, Stream, load
from outpace.errors import (
    CacheError,
    ContextError,
    DownloadError,
    DrafterError,
    OutpaceError,
    TokenizerError,
    UsageError,
    WeightsError,
)
from outpace.tree import EMPTY, Drafter, DraftTree, View
from outpace.types import Constraint, LogitsProcessor, TokenLogprob
from outpace.version import VERSION as __version__

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
    "LanguageModel",
    "LogitsProcessor",
    "OutpaceError",
    "Result",
    "Stream",
    "TokenLogprob",
    "TokenizerError",
    "UsageError",
    "View",
    "WeightsError",
    "__version__",
    "load",
]
