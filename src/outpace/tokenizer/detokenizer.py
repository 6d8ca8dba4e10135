"""Text from tokens as they come, never half a character.

The text of a sequence is defined here, token by token, so it cannot depend on how the tokens were cut into steps:
each token stands for bytes (`Spelling`), the bytes are read as UTF-8, and bytes that are no UTF-8 become U+FFFD as in
`bytes.decode(errors="replace")`.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from itertools import islice

CONTEXT = 8  # tokens before a text that are enough to know the character that it may continue


def _byte_characters() -> dict[str, int]:
    """Return how byte-level BPE spells bytes, as GPT-2's `bytes_to_unicode`: printable ones plainly, others shifted."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_characters()


class Spelling:
    """What each token adds to a text, in bytes: asked of the tokenizer's own decoder once per token, then remembered.

    decode: token ids to text, special tokens spelled out. entry: an id's entry in the vocabulary, "" for none.
    Apart from a space that it drops where a text begins (SentencePiece), the decoder must treat a token alike
    whatever stands before it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], entry: Callable[[int], str], size: int) -> None:
        self._decode = decode
        self._entry = entry
        # A token of letters to stand before any other, which then decodes as in the middle of a text.
        letters = (i for i in range(size) if entry(i)[-1:].isalpha() and decode([i]).isalpha())
        self._before = list(islice(letters, 1))
        self._known: dict[int, bytes] = {}

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes that a token adds in the middle of a text."""
        if token not in self._known:
            text = self._within(token)
            self._known[token] = _broken(self._entry(token), text) if "\ufffd" in text else text.encode()
        return self._known[token]

    def loses_space(self, token: int) -> bool:
        """Whether a token that begins with a space loses it where a text begins."""
        return self._decode([token]) == self._within(token)[1:]

    def _within(self, token: int) -> str:
        return self._decode([*self._before, token])[len(self._decode(self._before)) :]


def _broken(entry: str, text: str) -> bytes:
    """Return the bytes of a token whose text has a U+FFFD: parts of characters, unless U+FFFD itself is meant."""
    if len(entry) == 6 and entry.startswith("<0x"):
        return bytes.fromhex(entry[3:5])
    if all(character in _BYTES for character in entry):
        found = bytes(_BYTES[character] for character in entry)
        if found.decode(errors="replace") == text:
            return found
    return text.encode()


class Detokenizer:
    """Turns one sequence's tokens into text; `push` and `finish` change it.

    All that `push` returned, and then `finish`, is the text of the tokens that were pushed.
    """

    def __init__(self, spelling: Spelling, hidden: frozenset[int] = frozenset(), context: Sequence[int] = ()) -> None:
        """Start a text after the tokens `context` (their text is not shown); `hidden` tokens are not shown either."""
        self._spelling = spelling
        self._hidden = hidden
        self._reader = codecs.getincrementaldecoder("utf-8")("replace")
        self._begun = any(token not in hidden and spelling.bytes_of(token) for token in reversed(context))
        self._foreign = False
        for token in context[-CONTEXT:]:
            self.push(token)
        self._foreign = bool(self._reader.getstate()[0])  # the context ends within a character

    def push(self, token: int) -> str:
        """Return the text that `token` completes: often its own, "" within a character."""
        spelled = b"" if token in self._hidden else self._spelling.bytes_of(token)
        if not spelled:
            return ""
        if self._foreign:
            self._foreign = False
            if not 0x80 <= spelled[0] < 0xC0:  # it does not go on with the context's character
                self._reader.reset()
        text = self._reader.decode(spelled)
        if not self._begun:
            self._begun = True
            if text.startswith(" ") and self._spelling.loses_space(token):
                text = text[1:]
        return text

    def finish(self) -> str:
        """Return what stands for a character that will not be completed: U+FFFD, or "" where there is none."""
        return "" if self._foreign else self._reader.decode(b"", final=True)

    def hidden(self, token: int) -> str:
        """Return what a token spells that is not shown; "" for any other."""
        return self.spelled(token) if token in self._hidden else ""

    def spelled(self, token: int) -> str:
        """Return what a token spells in the middle of a text, shown or not."""
        return self._spelling.bytes_of(token).decode(errors="replace")
