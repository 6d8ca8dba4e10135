"""Message text that must not become a control token: characters are swapped for stand-ins while a template renders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

# What templates compare with or build control tokens from ('<|' + role + '|>'): only whole tokens are disguised in it.
WORDS = {"role", "type"}
PRIVATE = range(0xF0000, 0xFFFFE)  # a private-use plane of Unicode


class Danger:
    """Finds the characters of a text by which it could take part in a control token."""

    def __init__(self, controls: Iterable[str]) -> None:
        self._controls = sorted(filter(None, controls))
        self._starts = re.compile(f"(?={'|'.join(map(re.escape, self._controls))})" if self._controls else r"(?!)")
        self._heads = {token[:k] for token in self._controls for k in range(1, len(token))}
        self._tails = {token[-k:] for token in self._controls for k in range(1, len(token))}
        self._longest = max(map(len, self._controls), default=0)

    def places(self, text: str, joins: bool) -> set[int]:
        """Return indices into `text`: one in every control token it holds, and, with `joins`, its ends where
        it could make one with what stands beside it. Without these characters it is harmless.
        """
        found = {match.start() for match in self._starts.finditer(text)}
        core = text.strip()  # templates often strip contents
        if joins and core:
            first = text.index(core)
            last = first + len(core) - 1
            if any(core[:k] in self._tails for k in range(1, self._longest)):
                found.add(first)
            if any(core[-k:] in self._heads for k in range(1, self._longest)):
                found.add(last)
            if len(core) < self._longest and any(core in token for token in self._controls):
                found |= {first, last}
        return found


class Disguise:
    """Hides dangerous characters of one chat, and restores them; the stand-ins occur nowhere else in it."""

    def __init__(self, danger: Danger, chat: Any, template: str) -> None:
        """`chat` is everything that is rendered: messages and variables."""
        self._danger = danger
        self._chat = (chat, template)
        self._stand_ins: dict[str, str] = {}

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
        places = self._danger.places(text, joins)
        if not places:
            return text
        chars = list(text)
        for place in places:
            chars[place] = self._stand_in(chars[place])
        return "".join(chars)

    def _stand_in(self, char: str) -> str:
        if char not in self._stand_ins:
            taken = len(self._stand_ins)
            self._stand_ins[char] = next(islice(spare(_strings(self._chat)), taken, None))
        return self._stand_ins[char]


def spare(texts: Iterable[str]) -> Iterator[str]:
    """Yield private characters that occur in none of `texts`."""
    used: set[str] = set().union(*texts)
    return (char for char in map(chr, PRIVATE) if char not in used)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings([*value.keys(), *value.values()])
    elif isinstance(value, Sequence):
        for item in value:
            yield from _strings(item)
