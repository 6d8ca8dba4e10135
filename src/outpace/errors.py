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
Below the tree: the checks of a user's values. Each returns the value in its normal form or raises UsageError.
"""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable, Sequence, Set
from numbers import Real
from typing import Any

import numpy as np


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


def shown(value: Any) -> str:
    """Return a value as a message quotes it: its repr, cut to 60 characters."""
    try:
        text = repr(value)
    except Exception:  # a foreign object's repr can raise anything
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def integer(name: str, value: Any, minimum: int | None = None, maximum: int | None = None) -> int:
    """Return a whole number in [minimum, maximum] as an int. NumPy's are welcome; True, 1.0 and "1" are refused."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise UsageError(f"{name} must be a whole number, got {shown(value)}")
    if (minimum is not None and number < minimum) or (maximum is not None and number > maximum):
        allowed = f"at least {minimum}" if maximum is None else f"in [{minimum}, {maximum}]"
        raise UsageError(f"{name} must be {allowed}, got {shown(value)}")
    return number


def real(name: str, value: Any, minimum: float, maximum: float) -> float:
    """Return a number in [minimum, maximum] as a float. NumPy's are welcome; NaN, True and "0.5" are refused."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise UsageError(f"{name} must be a number, got {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not minimum <= number <= maximum:  # also refuses NaN
        raise UsageError(f"{name} must be in [{minimum:g}, {maximum:g}], got {shown(value)}")
    return number


def flag(name: str, value: Any) -> bool:
    """Return a truth value as a bool. NumPy's are welcome; 1 and "yes" are refused."""
    if not isinstance(value, bool | np.bool):
        raise UsageError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def one_of(name: str, value: Any, allowed: Iterable[str]) -> str:
    """Return one of the `allowed` names."""
    names = tuple(allowed)
    if not isinstance(value, str):
        raise UsageError(f"{name} must be one of {', '.join(names)}, got {shown(value)}")
    if value not in names:
        raise unknown(name, value, names)
    return value


def instance(name: str, value: Any, kind: Any, what: str) -> Any:
    """Return an instance of `kind`; `what` names it for people ("a string")."""
    if not isinstance(value, kind):
        raise UsageError(f"{name} must be {what}, got {shown(value)}")
    return value


def items(name: str, value: Any, what: str) -> tuple[Any, ...]:
    """Return the items of a list, tuple, set or 1-D array; a string, bytes or a mapping is no list. `what`: of what."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return tuple(value.tolist())
    if isinstance(value, str | bytes | bytearray | memoryview) or not isinstance(value, Sequence | Set):
        raise UsageError(f"{name} must be a list of {what}, got {shown(value)}")
    return tuple(value)


def strings(name: str, value: Any) -> tuple[str, ...]:
    """Return one string, or a list of them, as a tuple; none may be empty."""
    found = (value,) if isinstance(value, str) else items(name, value, "strings")
    for text in found:
        if not isinstance(text, str) or not text:
            raise UsageError(f"{name} must hold strings of at least one character, got {shown(text)}")
    return found


def token_ids(name: str, value: Any) -> tuple[int, ...]:
    """Return a list of token ids as a tuple of ints."""
    return tuple(integer(f"{name}[{i}]", token, 0) for i, token in enumerate(items(name, value, "token ids")))
