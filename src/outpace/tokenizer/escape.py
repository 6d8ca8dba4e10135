"""Escape control tokens in what people write: characters are swapped for stand-ins while a template renders."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

# What templates compare with or build control tokens from ('<|' + role + '|>'): only whole tokens are escaped in it.
WORDS = {"role", "type"}
PRIVATE = range(0xF0000, 0xFFFFE)  # a private-use plane of Unicode
_EDGE = 64  # characters of a text's ends that are compared with every control token's


class ControlTexts:
    """The texts of all control tokens; finds the characters by which another text could take part in one.

    Sorted lists instead of sets of all parts keep memory linear in the texts: a part of a token is a prefix of what
    stands at its place in the list, or of nothing.
    """

    def __init__(self, controls: Iterable[str]) -> None:
        self._texts = sorted(set(filter(None, controls)))
        self._reversed = sorted(text[::-1] for text in self._texts)
        self._starts = list(_prefix_free(self._texts))  # whatever starts with a control token starts with one of these
        self._longest = max(map(len, self._texts), default=0)
        firsts = {text[0] for text in self._starts}
        self._first = re.compile(f"[{re.escape(''.join(sorted(firsts)))}]") if firsts else re.compile(r"(?!)")

    def places(self, text: str, joins: bool) -> set[int]:
        """Return indices into `text`: one in every control token it holds, and, with `joins`, its ends where
        it could make one with what stands beside it. Without these characters it is harmless.
        """
        found = {match.start() for match in self._first.finditer(text) if self._starts_at(text, match.start())}
        core = text.strip()  # templates often strip contents
        if joins and core:
            first = text.index(core)
            last = first + len(core) - 1
            if self._ends_one(core):
                found.add(first)
            if self._begins_one(core):
                found.add(last)
            if len(core) < self._longest and any(core in token for token in self._texts):
                found |= {first, last}
        return found

    def _starts_at(self, text: str, place: int) -> bool:
        # Texts that are prefixes of nothing else in their list: if one starts here, it is the one that sorts before.
        index = bisect_right(self._starts, text[place : place + self._longest]) - 1
        return index >= 0 and text.startswith(self._starts[index], place)

    def _ends_one(self, core: str) -> bool:
        """Whether some control token ends with the beginning of `core` and is longer."""
        edge = core[:_EDGE]
        if any(_is_proper_prefix(self._reversed, edge[:k][::-1]) for k in range(1, len(edge) + 1)):
            return True
        return len(core) > _EDGE and any(edge in text for text in self._texts if len(text) > _EDGE)

    def _begins_one(self, core: str) -> bool:
        """Whether some control token begins with the end of `core` and is longer."""
        edge = core[-_EDGE:]
        if any(_is_proper_prefix(self._texts, edge[-k:]) for k in range(1, len(edge) + 1)):
            return True
        return len(core) > _EDGE and any(edge in text for text in self._texts if len(text) > _EDGE)


def _prefix_free(texts: Sequence[str]) -> Iterator[str]:
    """Yield those sorted texts that begin with none of the others."""
    last = None
    for text in texts:
        if last is None or not text.startswith(last):
            last = text
            yield text


def _is_proper_prefix(texts: Sequence[str], part: str) -> bool:
    """Whether some sorted text begins with `part` and is longer."""
    index = bisect_left(texts, part)
    if index < len(texts) and texts[index] == part:
        index += 1
    return index < len(texts) and texts[index].startswith(part)


class Escape:
    """Hides dangerous characters of one chat, and restores them; the stand-ins occur nowhere else in it."""

    def __init__(self, controls: ControlTexts, chat: Any, template: str) -> None:
        """`chat` is everything that is rendered: messages and variables."""
        self._controls = controls
        self._chat = (chat, template)
        self._stand_ins: dict[str, str] = {}
        self._unused: Iterator[str] | None = None

    def __bool__(self) -> bool:
        """Whether anything was hidden."""
        return bool(self._stand_ins)

    def hide(self, value: Any, joins: bool = True) -> Any:
        """Return a copy of a JSON-like value with all dangerous characters in its strings swapped."""
        if isinstance(value, str):
            return self._hide_text(value, joins)
        if isinstance(value, Mapping):
            return {self.hide(key, False): self.hide(item, joins and key not in WORDS) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(item, joins) for item in value]
        return value

    def restore(self, text: str) -> str:
        """Return `text` with the characters that were hidden."""
        return text.translate({ord(stand_in): char for char, stand_in in self._stand_ins.items()})

    def _hide_text(self, text: str, joins: bool) -> str:
        places = self._controls.places(text, joins)
        if not places:
            return text
        chars = list(text)
        for place in places:
            chars[place] = self._stand_in(chars[place])
        return "".join(chars)

    def _stand_in(self, char: str) -> str:
        if char not in self._stand_ins:
            if self._unused is None:
                self._unused = unused_characters(strings_in(self._chat))
            self._stand_ins[char] = next(self._unused)
        return self._stand_ins[char]


def unused_characters(texts: Iterable[str]) -> Iterator[str]:
    """Yield private characters that occur in none of `texts`."""
    used: set[str] = set().union(*texts)
    return (char for char in map(chr, PRIVATE) if char not in used)


def strings_in(value: Any) -> Iterator[str]:
    """Yield every string of a JSON-like value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from strings_in([*value.keys(), *value.values()])
    elif isinstance(value, Sequence):
        for item in value:
            yield from strings_in(item)
