"""Where a text ends: the output of one request as it is written, and why it stops.

Knows nothing of models, caches or batches. It is given the tokens that a step emitted, and keeps those up to the
first that ends the text. Tokens are looked at one by one, so how many a step emits never changes the text.

    tokens     t0   t1   t2   t3         stop string "end", found inside t2
    text      |He |re e|nd of|...
    kept       t0   t1                   the text ends before it: "Here "; t1 is the last token with text before that
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from outpace.errors import UsageError
from outpace.tokenizer import Detokenizer
from outpace.types import FinishReason


class Output:
    """One request's output. `extend` and `finish` change it; `take` only remembers what was taken.

    tokens: what is kept. A stop string can cut several tokens off its end (never one that was taken), so lists
        that run beside it (logprobs, sources) are to be cut to its length.
    finish_reason: None while the text goes on. Where several reasons hold at one token: stop, length, context.

    A stop token is kept as the last token and never shown. A stop string ends the text before its earliest
    occurrence; the tokens are the shortest prefix that covers the text. Both count in the order of tokens.
    """

    def __init__(
        self,
        *,
        max_new_tokens: int,
        room: int,
        stop_tokens: frozenset[int] = frozenset(),
        stop_strings: Sequence[str] = (),
        detokenizer: Detokenizer | None = None,
    ) -> None:
        """Start an empty output.

        room: how many tokens still fit into the model's context.
        detokenizer: a fresh one; without it there is no text, and no stop string can be found.
        """
        if isinstance(stop_strings, str) or "" in stop_strings:
            raise UsageError(f"stop strings must be a list of strings that are not empty, got {stop_strings!r}")
        if stop_strings and detokenizer is None:
            raise UsageError("stop strings need a tokenizer, and this model has none: use stop tokens")
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.limit = min(max_new_tokens, room)
        self._at_limit: FinishReason = "length" if max_new_tokens <= room else "context"
        self._stop_tokens = stop_tokens
        self._stop_strings = tuple(stop_strings)
        self._detokenizer = detokenizer
        self._texts: list[str] = []  # what each token added to the text
        self._ends: list[int] = []  # length of the text after each token
        self._tail = ""  # the end of the text in which a stop string may have begun
        self._longest_tail = max(map(len, stop_strings), default=1) - 1
        self._taken_tokens = 0
        self._taken_text = 0

    @property
    def text(self) -> str:
        """The text so far (its last character may still be incomplete, and is then missing)."""
        return "".join(self._texts)

    def extend(self, tokens: Sequence[int]) -> FinishReason | None:
        """Append the tokens that a step emitted, up to the first that ends the text; return why it ends."""
        assert self.finish_reason is None, "the output is finished"
        for token in tokens:
            self.finish_reason = self._append(token)
            if self.finish_reason is not None:
                break
        return self.finish_reason

    def finish(self, reason: FinishReason) -> None:
        """End the text as it stands; a text that has ended keeps its reason."""
        self.finish_reason = self.finish_reason or reason

    def take(self) -> tuple[str, list[int]]:
        """Return the text and tokens since the last call that can no longer be taken back.

        While the text goes on, what may be the beginning of a stop string is held back, and the tokens after it.
        """
        num_tokens, length = self._settled()
        tokens = self.tokens[self._taken_tokens : num_tokens]
        text = self._slice(self._taken_text, length)
        self._taken_tokens, self._taken_text = num_tokens, length
        return text, tokens

    def _append(self, token: int) -> FinishReason | None:
        self.tokens.append(token)
        stops = token in self._stop_tokens
        if self._detokenizer is not None:
            self._write("" if stops else self._detokenizer.push(token))
        if stops:
            return "stop"
        if self._stop_strings and self._texts[-1] and self._cut():
            return "stop"
        return self._at_limit if len(self.tokens) >= self.limit else None

    def _write(self, text: str) -> None:
        self._texts.append(text)
        self._ends.append(self._length + len(text))

    @property
    def _length(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _cut(self) -> bool:
        """Search the newest token's text, with the tail before it, and end the text before a stop string."""
        recent = self._tail + self._texts[-1]
        found = [place for stop in self._stop_strings if (place := recent.find(stop)) >= 0]
        if not found:
            self._tail = recent[len(recent) - min(self._longest_tail, len(recent)) :]
            return False
        length = self._length - len(recent) + min(found)
        kept = self._covering(length)
        del self.tokens[kept:], self._texts[kept:], self._ends[kept:]
        if kept:
            before = self._ends[-2] if kept > 1 else 0
            self._texts[-1] = self._texts[-1][: length - before]
            self._ends[-1] = length
        return True

    def _covering(self, length: int) -> int:
        """Return how many tokens it takes to write the first `length` characters."""
        return bisect_left(self._ends, length) + 1 if length else 0

    def _settled(self) -> tuple[int, int]:
        """Return how many tokens and characters no later token can cut off."""
        if self.finish_reason is not None or not self._stop_strings:
            return len(self.tokens), self._length
        length = self._length - max(_begun(self._tail, stop) for stop in self._stop_strings)
        return self._covering(length), length

    def _slice(self, start: int, stop: int) -> str:
        """Return characters [start, stop) of the text, joining only the tokens that hold them."""
        if start == stop:
            return ""
        first, last = bisect_right(self._ends, start), bisect_left(self._ends, stop)
        offset = self._ends[first] - len(self._texts[first])
        return "".join(self._texts[first : last + 1])[start - offset : stop - offset]


def _begun(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` with which `stop` begins (and does not end)."""
    start = max(0, len(text) - len(stop) + 1)
    while (start := text.find(stop[0], start)) >= 0:
        if stop.startswith(text[start:]):
            return len(text) - start
        start += 1
    return 0
