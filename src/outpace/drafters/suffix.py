"""Draft from everything that ever followed the longest earlier match of the text's end, as a tree."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from outpace.drafters.automaton import SuffixAutomaton
from outpace.drafters.kept import KeptStates
from outpace.drafters.matching import trust
from outpace.drafters.protocol import SequenceView
from outpace.errors import UsageError
from outpace.runner import Pass
from outpace.trace import Step
from outpace.types.tree import EMPTY, DraftTree, TreeBuilder

_MEMORY_TOKENS = 65_536  # of past requests, about 30 MB
_LONGEST_REMEMBERED_MATCH = 32  # tokens of the text's end that are looked up in past requests
_ESCAPE = -1


class _Match(NamedTuple):
    """Where the text's end (and the draft down to a node) stood before: a state, and how many tokens of it."""

    automaton: SuffixAutomaton
    state: int
    length: int


@dataclass(slots=True)
class _Growth:
    """A draft that grows best node first.

    heap: (-chance, order, parent, token, confidence, match after it): chance is that of reaching and accepting the
    node. Token _ESCAPE goes on from `parent` with a shorter match; its confidence is what the longer ones left over.
    """

    min_match: int
    max_branches: int
    min_score: float
    tree: TreeBuilder = field(default_factory=TreeBuilder)
    heap: list[tuple[float, int, int, int, float, _Match]] = field(default_factory=list)
    num_pushed: int = 0  # breaks ties: first come, first served

    def take_best(self) -> None:
        """Add the best node there is, unless a longer match has proposed it, and what may follow it."""
        chance, _, parent, token, confidence, match = heapq.heappop(self.heap)
        if token == _ESCAPE:
            self.follow(match, parent, -chance / confidence, confidence)
        elif self.tree.find(parent, token) is None:
            self.follow(match, self.tree.add(parent, token, confidence), -chance, 1.0)

    def follow(self, match: _Match, node: int, reached: float, mass: float) -> None:
        """Push what followed the match as children of `node`, which is reached with that chance.

        mass: the share of the node's confidence that longer matches left to this one.
        """
        automaton, state, length = match
        # Where the text ends nothing follows, but something did after its longest suffix that stood earlier.
        while length >= self.min_match and not automaton.next[state]:
            state = automaton.link[state]
            length = automaton.length[state]
        if length < self.min_match:
            return
        trusted = mass * trust(length)
        followers = automaton.next[state]
        for token, share in self._shares(automaton, followers):
            self._push(reached, node, token, trusted * share, _Match(automaton, followers[token], length + 1))
        shorter = automaton.link[state]
        self._push(reached, node, _ESCAPE, mass - trusted, _Match(automaton, shorter, automaton.length[shorter]))

    def _shares(self, automaton: SuffixAutomaton, followers: dict[int, int]) -> list[tuple[int, float]]:
        """Return the most frequent followers (token -> state), each with its share of all."""
        if len(followers) == 1:
            return [(token, 1.0) for token in followers]
        count = automaton.count
        total = sum(count[state] for state in followers.values())
        best = heapq.nsmallest(self.max_branches, followers, key=lambda token: (-count[followers[token]], token))
        return [(token, count[followers[token]] / total) for token in best]

    def _push(self, reached: float, node: int, token: int, confidence: float, match: _Match) -> None:
        chance = reached * confidence
        if chance >= self.min_score:
            self.num_pushed += 1
            heapq.heappush(self.heap, (-chance, self.num_pushed, node, token, confidence, match))


@dataclass(slots=True)
class _Text:
    """One sequence's own automaton, and its tokens; the automaton has read the first `num_indexed`."""

    salt: bytes
    automaton: SuffixAutomaton = field(default_factory=SuffixAutomaton)
    num_indexed: int = 0
    tokens: list[int] = field(default_factory=list)


class _Memory:
    """Texts of past requests, the latest at least half of `capacity` tokens and never more than all of it.

    Two automata: texts go into the newer one; when it is half full, it becomes the older one and the former older
    one is dropped, as with log files.
    """

    def __init__(self, capacity: int) -> None:
        self._half = capacity // 2
        self._older, self._newer = SuffixAutomaton(), SuffixAutomaton()

    def add(self, tokens: Sequence[int]) -> None:
        tokens = tokens[-self._half :]
        if self._newer.num_appended + len(tokens) > self._half:
            self._older, self._newer = self._newer, SuffixAutomaton()
        self._newer.begin()
        for token in tokens:
            self._newer.extend(token)

    def matches(self, end: Sequence[int]) -> list[_Match]:
        return [_Match(automaton, *automaton.longest_match(end)) for automaton in (self._newer, self._older)]


class Suffix:
    """Draft a tree of the continuations that the text's longest repeated suffix had before.

    The idea of SuffixDecoding (arXiv:2411.04975) on a suffix automaton. The tree grows best node first. A node's
    confidence is the trust in the match (its length m: m / (m + 1)) times the share of that continuation among all.
    What the trust leaves over, 1 / (m + 1), goes to the next shorter match with other continuations, down to
    `min_match` tokens (escaping to shorter contexts as in PPM, Cleary and Witten 1984). At most `max_branches`
    continuations of one match are tried. A node less likely than `min_score` to be reached and accepted is left out.

    `remember=True` also drafts from the last 32,768 to 65,536 tokens of requests that have ended (prompt and output,
    about 30 MB). Then one user's text can speed up another's, which somebody might measure: hence opted in.
    """

    def __init__(
        self, *, min_match: int = 2, max_branches: int = 3, min_score: float = 0.1, remember: bool = False
    ) -> None:
        if not 1 <= min_match <= _LONGEST_REMEMBERED_MATCH:
            raise UsageError(f"min_match must be in [1, {_LONGEST_REMEMBERED_MATCH}], got {min_match!r}")
        if not 1 <= max_branches <= 64:
            raise UsageError(f"max_branches must be in [1, 64], got {max_branches!r}")
        if not 0.0 <= min_score <= 1.0:
            raise UsageError(f"min_score must be in [0, 1], got {min_score!r}")
        self.name = "suffix"
        self.taps: tuple[int, ...] = ()
        self._min_match = min_match
        self._max_branches = max_branches
        self._min_score = min_score
        self._memory = _Memory(_MEMORY_TOKENS) if remember else None
        self._texts: dict[int, _Text] = {}
        self._kept: KeptStates[_Text] = KeptStates()

    def propose(self, sequences: Sequence[SequenceView], budgets: Sequence[int]) -> list[DraftTree]:
        """Return one tree per sequence, empty where nothing matches."""
        return [self._draft(sequence, budget) for sequence, budget in zip(sequences, budgets, strict=True)]

    def observe(self, steps: Sequence[Step], passed: Pass) -> None:
        """Note what was written where it will be remembered: there may be no `propose` after it."""
        for step in steps if self._memory else ():
            text = self._texts.get(step.request)
            if text and len(text.tokens) == step.position:
                text.tokens += step.tokens

    def forget(self, request: int) -> None:
        """Keep the automaton of a request for one that continues it; remember its tokens if that was asked for."""
        text = self._texts.pop(request, None)
        if text is None:
            return
        if self._memory:
            self._memory.add(text.tokens)
        del text.tokens[text.num_indexed :]
        self._kept.keep(text.salt, text.tokens, text)

    def _text(self, sequence: SequenceView) -> _Text:
        text = self._texts.get(sequence.id)
        if text is None:
            salt = sequence.request.options.salt
            kept = self._kept.take(salt, sequence.tokens)
            text = self._texts[sequence.id] = kept if kept is not None else _Text(salt)
        return text

    def _draft(self, sequence: SequenceView, budget: int) -> DraftTree:
        if budget <= 0:
            return EMPTY
        text = self._text(sequence)
        self._extend(text, sequence.tokens)
        matches = [_Match(text.automaton, text.automaton.last, len(sequence.tokens))]
        if self._memory:
            matches += self._memory.matches(sequence.tokens[-_LONGEST_REMEMBERED_MATCH:])
        growth = _Growth(self._min_match, self._max_branches, self._min_score)
        for match in matches:
            growth.follow(match, -1, 1.0, 1.0)
        while growth.heap and len(growth.tree) < budget:
            growth.take_best()
        return growth.tree.build(self.name)

    def _extend(self, text: _Text, tokens: list[int]) -> None:
        for position in range(text.num_indexed, len(tokens)):
            text.automaton.extend(tokens[position])
        text.tokens += tokens[len(text.tokens) :]
        text.num_indexed = len(tokens)
