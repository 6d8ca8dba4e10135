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
from outpace.types import FinishReason, Request


class Output:
    """One request's output. `extend` and `finish` change it; `take` only remembers what was taken.

    tokens: what is kept. A stop string can cut several tokens off its end (never one that was taken), so lists
        that run beside it (logprobs, sources) are to be cut to its length.
    limit: the maximum number of tokens: what the request asks for, or what the context has room for.
    finish_reason: None while the text goes on. Where several reasons hold at one token: stop, length, context.

    A stop token is kept as the last token and never shown. A stop string ends the text before its earliest
    occurrence; the tokens are the shortest prefix that covers the text. Both count in the order of tokens.
    Control tokens are not shown, but a stop string may spell them: the *searched* text has them, and a stop token.
    """

    def __init__(self, request: Request, context: int, detokenizer: Detokenizer | None = None) -> None:
        """Start an empty output.

        context: maximum tokens of a sequence, prompt and output.
        detokenizer: a fresh one; without it there is no text, and no stop string can be found.
        """
        self._stop_strings = request.options.stop
        if self._stop_strings and detokenizer is None:
            raise UsageError("stop strings need a tokenizer, and this model has none: use stop tokens")
        room = context - len(request.prompt)
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.limit = min(request.max_new_tokens, room)
        self._at_limit: FinishReason = "length" if request.max_new_tokens <= room else "context"
        self._stop_tokens = request.stop_tokens
        self._detokenizer = detokenizer
        self._texts: list[str] = []  # what each token added to the text
        self._ends: list[int] = []  # length of the text after each token
        self._searched: list[str] = []  # what each token added to the searched text; it ends in _texts' entry
        self._unsearched = ""  # the end of the searched text in which no stop string was looked for yet
        self._tail = ""  # what stands before that, in which one may have begun
        self._longest_tail = max(map(len, self._stop_strings), default=1) - 1
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
        if self.finish_reason is None:
            self.finish_reason = reason
            self._complete()

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
        stops = token in self._stop_tokens
        if stops:
            self._complete()
        self.tokens.append(token)
        own = self._write(token, shown=not stops)
        at_limit = len(self.tokens) >= self.limit
        if at_limit and not stops:
            self._complete()
        if self._cut(before=len(own) if stops else 0) or stops:
            return "stop"
        return self._at_limit if at_limit else None

    def _write(self, token: int, shown: bool) -> str:
        """Add a token to both texts; return what it adds to the searched one."""
        if self._detokenizer is None:
            return ""
        text = self._detokenizer.push(token) if shown else ""
        searched = text
        if self._stop_strings:
            searched = text or (self._detokenizer.hidden(token) if shown else self._detokenizer.spelled(token))
            self._searched.append(searched)
            self._unsearched += searched
        self._texts.append(text)
        self._ends.append(self._length + len(text))
        return searched

    def _complete(self) -> None:
        """Show a character that stays incomplete, with the last token: the text is then what the tokens decode to."""
        if self._detokenizer is None or not (text := self._detokenizer.finish()):
            return
        self._texts[-1] += text
        self._ends[-1] += len(text)
        if self._stop_strings:
            self._searched[-1] += text
            self._unsearched += text

    @property
    def _length(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _cut(self, before: int) -> bool:
        """Search the newest text, with the tail before it, and end the text before a stop string.

        One that begins within the last `before` characters does not count: they are a stop token's own.
        """
        if not self._unsearched:
            return False
        recent = self._tail + self._unsearched
        found = [place for stop in self._stop_strings if 0 <= (place := recent.find(stop)) < len(recent) - before]
        self._unsearched = ""
        if not found:
            self._tail = recent[len(recent) - min(self._longest_tail, len(recent)) :]
            return False
        length = self._length_before(len(recent) - min(found))
        kept = self._covering(length)
        del self.tokens[kept:], self._texts[kept:], self._ends[kept:], self._searched[kept:]
        if kept:
            start = self._ends[-2] if kept > 1 else 0
            self._texts[-1] = self._texts[-1][: length - start]
            self._ends[-1] = length
        return True

    def _length_before(self, count: int) -> int:
        """Return the length of the text that is shown before the last `count` characters of the searched text."""
        token = len(self._searched)
        while count > 0:
            token -= 1
            count -= len(self._searched[token])
        if token == len(self._searched):
            return self._length
        text = len(self._texts[token])
        hidden = len(self._searched[token]) - text
        return self._ends[token] - text + max(0, -count - hidden)

    def _covering(self, length: int) -> int:
        """Return how many tokens it takes to write the first `length` characters."""
        return bisect_left(self._ends, length) + 1 if length else 0

    def _settled(self) -> tuple[int, int]:
        """Return how many tokens and characters no later token can cut off."""
        if self.finish_reason is not None or not self._stop_strings:
            return len(self.tokens), self._length
        length = self._length_before(max(_begun(self._tail, stop) for stop in self._stop_strings))
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
