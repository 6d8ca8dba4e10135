"""Outpace: language models generate faster, without changing a token.

import outpace

lm = outpace.load("smollm2-135m")
print(lm.generate("The capital of France is", max_new_tokens=20, strategy="ngram").text)
"""

from outpace.api import Chat, Chunk, LanguageModel, Result, Stream, load
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
from outpace.tree import EMPTY, DraftTree
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
    "EngineError",
    "LanguageModel",
    "LogitsProcessor",
    "OutpaceError",
    "Result",
    "SequenceView",
    "Stream",
    "TokenLogprob",
    "TokenizerError",
    "UsageError",
    "WeightsError",
    "__version__",
    "load",
]
