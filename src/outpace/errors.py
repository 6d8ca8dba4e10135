"""Every error Outpace raises on purpose: one tree.

    OutpaceError
    ├── UsageError (ValueError)     an argument, option or name that cannot work as given
    │   └── ContextError            a prompt longer than the model's context
    ├── WeightsError                a model file or folder that is malformed or not supported
    │   └── TokenizerError          its tokenizer or chat template is
    ├── DownloadError               fetching a model failed; nothing half-done is left
    ├── CacheError                  the KV cache has no room for what was asked
    ├── DrafterError                a drafter returned something that is not a draft
    └── EngineError                 a pass failed, or the engine takes no more work

Messages say what was given, what is allowed and what to do. `assert` is for our own bugs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OutpaceError(Exception):
    """Base of all errors that Outpace raises on purpose."""


class UsageError(OutpaceError, ValueError):
    """An argument, option or name that cannot work as given."""


class ContextError(UsageError):
    """A prompt that does not fit the model's context (it is never silently cut)."""


class WeightsError(OutpaceError):
    """A model file or folder that is malformed or not supported; the message names the field."""


class TokenizerError(WeightsError):
    """A tokenizer or chat template that is malformed, missing or not supported."""


class DownloadError(OutpaceError):
    """Fetching a model failed; nothing half-done was left behind."""


class CacheError(OutpaceError):
    """The KV cache has no room for what was asked."""


class DrafterError(OutpaceError):
    """A drafter returned something that is not a draft for this request."""


class EngineError(OutpaceError):
    """A pass failed (the cause says why), or the engine takes no more work."""


def unknown(kind: str, given: str, allowed: Iterable[str]) -> UsageError:
    """Return the error for an unknown name, with close matches first and then all allowed names."""
    names = sorted(allowed)
    close = difflib.get_close_matches(given, names, n=3)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    return UsageError(f"unknown {kind} {given!r}: {hint}allowed: {', '.join(names)}")
