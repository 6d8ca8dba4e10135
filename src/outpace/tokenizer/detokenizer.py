"""Text from tokens as they come, never half a character."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# A character is at most 4 bytes, so 4 tokens; a longer wait means bytes that are no text at all.
MOST_HELD = 16
CONTEXT = 8  # tokens before a text that are enough to know how it continues them


class Detokenizer:
    """Turns one text's tokens into characters; `push` is the only thing that changes it.

    The windowed algorithm of `tokenizers.decoders.DecodeStream`: decode the last shown tokens with and without
    the new ones; the difference is the new text. That class itself raises on bytes that are no UTF-8 and takes
    quadratic time over tokens without text; models write both, so the few lines are here.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        hidden: frozenset[int] = frozenset(),
        context: Sequence[int] = (),
    ) -> None:
        """Start a text after the tokens `context` (their text is not shown); `hidden` tokens have no text."""
        self._decode = decode
        self._hidden = hidden
        self._window: list[int] = []  # the tokens that were shown last
        self._held: list[int] = []  # tokens since then: they end in half a character, or have no text
        self._shown = ""  # what was shown of both
        for token in context[-CONTEXT:]:
            self.push(token)

    def push(self, token: int) -> str:
        """Return the text that `token` completes: often its own, "" within a character."""
        if token in self._hidden:
            return ""
        self._held.append(token)
        text = self._decode(self._window + self._held)
        if not text.startswith(self._shown):  # bytes that are no UTF-8 changed what was shown: it stays
            text = self._shown + self._decode(self._held)
        overdue = len(self._held) == MOST_HELD
        settled = text if overdue else text.rstrip("\ufffd")
        new = settled[len(self._shown) :]
        if overdue or (new and settled == text):  # a whole character ends here: start the next window
            self._window, self._held = self._held if new else self._window, []
            self._shown = self._decode(self._window)
        else:
            self._shown += new
        return new
