"""Typed values out of a mapping that nobody vouches for: JSON that comes with a model, a GGUF file's metadata.

Everything in it may be of any type. A value is asked for by its key and its type; another type is an error that names
the file, the key and what it must be. null and absent are two things: a key that is absent has the default of those
who define the file, null is a value of its own, and what it means is said where the key is read.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from outpace.errors import WeightsError

_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 60


def shown(value: Any) -> str:
    """Return a value as errors show it: at most 80 characters, whatever it is."""
    text = _SHOWN.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def is_positive(value: Any, maximum: float) -> bool:
    """Whether a value is a number in (0, maximum]."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= maximum


def _same(value: Any, allowed: Any) -> bool:
    number = isinstance(allowed, float) and type(value) in (int, float)
    return (number or type(value) is type(allowed)) and bool(value == allowed)


@dataclass(frozen=True, slots=True)
class Values:
    """A mapping's values, taken out one by one with their type and range checked.

    raw: the mapping. where: its file, for errors. names: what the file calls keys, where that differs from ours.
    failure: the class of errors. Of defaults, `absent` stands for a key that is not there, `null` for one that is
    there without a value; without one of them, that is an error.
    """

    raw: Mapping[str, Any]
    where: str
    names: Mapping[str, str] = field(default_factory=dict)
    failure: type[WeightsError] = WeightsError

    def error(self, key: str, problem: str) -> WeightsError:
        """Return the error that says what is wrong with a key."""
        return self.failure(f"{self.where}: {self.names.get(key, key)} {problem}")

    def inner(self, key: str, raw: Mapping[str, Any]) -> Values:
        """Return the values of an object within this one."""
        return Values(raw, f"{self.where}: {self.names.get(key, key)}", self.names, self.failure)

    def is_given(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.raw.get(key) is not None

    def is_null(self, key: str) -> bool:
        """Whether the key is there and null."""
        return key in self.raw and self.raw[key] is None

    def only(self, key: str, allowed: Any, *, null: bool = False) -> None:
        """Raise unless the key is absent or has the only value that is supported (null: or is null)."""
        value = self.raw.get(key, allowed)
        if not (_same(value, allowed) or (null and value is None)):
            raise self.error(key, f"is {shown(value)}, only {allowed!r} is supported")

    def count(
        self, key: str, maximum: int, *, minimum: int = 1, absent: int | None = None, null: int | None = None
    ) -> int:
        """Return an integer in [minimum, maximum]."""
        value = self._get(key, absent, null)
        if type(value) is not int or not minimum <= value <= maximum:
            raise self.error(key, f"must be an integer in [{minimum}, {maximum}], is {shown(value)}")
        return value

    def number(self, key: str, maximum: float, *, absent: float | None = None, null: float | None = None) -> float:
        """Return a number in (0, maximum]."""
        value = self._get(key, absent, null)
        if not is_positive(value, maximum):
            raise self.error(key, f"must be a number in (0, {maximum:g}], is {shown(value)}")
        return float(value)

    def flag(self, key: str, *, absent: bool | None = None, null: bool | None = None) -> bool:
        """Return true or false."""
        value = self._get(key, absent, null)
        if not isinstance(value, bool):
            raise self.error(key, f"must be true or false, is {shown(value)}")
        return value

    def text(self, key: str) -> str | None:
        """Return a string; None if the key is absent or null."""
        value = self.raw.get(key)
        if value is not None and not isinstance(value, str):
            raise self.error(key, f"must be a string, is {shown(value)}")
        return value

    def object(self, key: str) -> Values:
        """Return an object's values; those of an empty one if the key is absent or null."""
        value = self.raw.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.error(key, f"must be an object, is {shown(value)}")
        return self.inner(key, value or {})

    def items(self, key: str) -> list[Any]:
        """Return a list; an empty one if the key is absent or null."""
        value = self.raw.get(key)
        if value is not None and not isinstance(value, list):
            raise self.error(key, f"must be a list, is {shown(value)}")
        return value or []

    def token(self, key: str) -> str | None:
        """Return a token's text, given as a string or as an object with its `content`; None if absent or null."""
        value = self.raw.get(key)
        return None if value is None else self.token_text(key, value)

    def tokens(self, key: str) -> list[str]:
        """Return the texts of a list of tokens; an empty list if the key is absent or null."""
        return [self.token_text(key, value) for value in self.items(key)]

    def token_text(self, key: str, value: Any) -> str:
        """Return the text of a token as it stands under `key`: a string, or an object with `content`."""
        text = value.get("content") if isinstance(value, dict) else value
        if not isinstance(text, str):
            raise self.error(key, f"must be a token (a string, or an object with content), is {shown(value)}")
        return text

    def _get(self, key: str, absent: Any, null: Any) -> Any:
        if key not in self.raw:
            if absent is None:
                raise self.error(key, "is missing")
            return absent
        value = self.raw[key]
        if value is None and null is None:
            raise self.error(key, "is null")
        return null if value is None else value
