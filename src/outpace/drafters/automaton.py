"""A suffix automaton that grows with the text: where any piece of it stood before, and what followed how often."""

from __future__ import annotations

from collections.abc import Sequence

# Suffix classes whose counts one new token raises: this bounds the work per token. Text that repeats itself
# at once ("aaaa...") has longer chains of classes; there the shortest ones are counted too low.
_MAX_COUNTED = 32


class SuffixAutomaton:
    """The smallest automaton that knows every substring of some texts, built token by token.

    Blumer et al. 1985, "The smallest automaton recognizing the subwords of a text"; several texts share one
    automaton as in Mohri et al. 2009 (a text that begins starts from the root again). A state is a class of
    substrings that end at the same places: at most 2 states and 3 transitions a token, so O(n) memory (about
    0.4 kB a token of prose) and amortised O(1) time a token.

    State 0 is the root (the empty string). For a state: `next` its transitions, `link` the class of its longest
    suffix outside the class (-1 for the root), `length` of its longest string, `count` of places where it ends.
    """

    def __init__(self) -> None:
        self.next: list[dict[int, int]] = [{}]
        self.link: list[int] = [-1]
        self.length: list[int] = [0]
        self.count: list[int] = [0]
        self.num_appended = 0  # tokens that took memory: not those that repeat the beginning of an earlier text
        self.last = 0  # the state of the whole text so far

    def begin(self) -> None:
        """Start another text: no substring crosses the border."""
        self.last = 0

    def extend(self, token: int) -> None:
        """Append a token to the present text."""
        previous = self.last
        known = self.next[previous].get(token)  # only where an earlier text went on like this
        if known is not None:
            self.last = self._split(previous, token, known)
        else:
            self.last = self._append(previous, token)
        self._count_suffixes()

    def longest_match(self, text: Sequence[int]) -> tuple[int, int]:
        """Return the state of the longest suffix of `text` that stands in the automaton, and its length."""
        state = length = 0
        for token in text:
            while state and token not in self.next[state]:
                state = self.link[state]
                length = self.length[state]
            if token in self.next[state]:
                state = self.next[state][token]
                length += 1
        return state, length

    def _append(self, previous: int, token: int) -> int:
        self.num_appended += 1
        new = self._add_state(self.length[previous] + 1, {}, 0, 0)
        state = previous
        while state >= 0 and token not in self.next[state]:
            self.next[state][token] = new
            state = self.link[state]
        if state >= 0:
            self.link[new] = self._split(state, token, self.next[state][token])
        return new

    def _split(self, state: int, token: int, target: int) -> int:
        """Return the class of state's longest string + token, cut out of `target` if that holds longer ones."""
        length = self.length[state] + 1
        if self.length[target] == length:
            return target
        clone = self._add_state(length, self.next[target].copy(), self.link[target], self.count[target])
        self.link[target] = clone
        while state >= 0 and self.next[state].get(token) == target:
            self.next[state][token] = clone
            state = self.link[state]
        return clone

    def _add_state(self, length: int, transitions: dict[int, int], link: int, count: int) -> int:
        self.next.append(transitions)
        self.link.append(link)
        self.length.append(length)
        self.count.append(count)
        return len(self.next) - 1

    def _count_suffixes(self) -> None:
        state = self.last
        for _ in range(_MAX_COUNTED):
            if state <= 0:
                return
            self.count[state] += 1
            state = self.link[state]
