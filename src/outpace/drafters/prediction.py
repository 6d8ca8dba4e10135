"""Draft from text that the caller expects, and find the place again where the target departs from it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from outpace.drafters.matching import trust
from outpace.drafters.protocol import SequenceView
from outpace.errors import UsageError
from outpace.runner import Pass
from outpace.trace import Step
from outpace.types.tree import EMPTY, DraftTree, TreeBuilder

_SYNC_TOKENS = 3  # output tokens that must stand in the prediction to take up the place after them
_NEAR = 32  # a deletion is looked for among that many tokens after the expected place
_GUESSED_EDITS = 4  # tokens after a departure during which a small edit is guessed
_EXPECTED_MATCH = 4  # tokens of agreement that the caller's word counts for at the start


@dataclass(slots=True)
class _Place:
    """Where one output stands in the prediction.

    at: the prediction's token that is expected next, None while lost. streak: tokens that agreed since the place was
    taken up. home: the place after the last token that agreed where it was expected. num_away: tokens written since.
    """

    at: int | None = 0
    streak: int = _EXPECTED_MATCH
    home: int = 0
    num_away: int = 0
    num_read: int = 0  # output tokens accounted for


class _Expected:
    """One request's expected output, and where any few of its tokens end in it."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = list(tokens)
        self.ends: dict[tuple[int, ...], list[int]] = {}  # _SYNC_TOKENS tokens -> ascending places after them
        for end in range(_SYNC_TOKENS, len(tokens) + 1):
            self.ends.setdefault(tuple(tokens[end - _SYNC_TOKENS : end]), []).append(end)
        self.place = _Place()

    def find(self, end: tuple[int, ...], home: int) -> int | None:
        """Return the first place at or after `home` where those tokens end, or else the last before it."""
        places = self.ends.get(end)
        if places is None:
            return None
        return places[min(bisect_left(places, home), len(places) - 1)]


class Prediction:
    """Draft the continuation of the output that a request's caller expects, more or less (an edited file, say).

    tokens: token ids, without the prompt, expected of requests that bring no `prediction` of their own.

    While the output agrees, the draft is the prediction's next tokens. After the target wrote something else, the next
    drafts guess the edit: tokens left out, replaced or put in. As soon as the last 3 output tokens stand in the
    prediction, the place after them is taken up: the first after the departure, or else the last before it.
    """

    def __init__(self, tokens: Sequence[int] | None = None) -> None:
        if isinstance(tokens, str) or not all(isinstance(token, int) and token >= 0 for token in tokens or ()):
            raise UsageError(
                f"a prediction must be token ids (integers of at least 0), got {tokens!r:.60}; "
                f"for text, encode it first: Prediction(lm.tokenizer.encode_text(text))"
            )
        if tokens is not None and not tokens:
            raise UsageError("the prediction is empty: give at least one token, or use no prediction")
        self._tokens = tuple(tokens or ())
        self.name = "prediction"
        self.taps: tuple[int, ...] = ()
        self._expected: dict[int, _Expected] = {}

    def propose(self, sequences: Sequence[SequenceView], budgets: Sequence[int]) -> list[DraftTree]:
        """Return one tree per sequence: a chain while the output agrees, else a chain per guessed edit."""
        return [self._draft(sequence, budget) for sequence, budget in zip(sequences, budgets, strict=True)]

    def observe(self, steps: Sequence[Step], passed: Pass) -> None:
        """Do nothing: the text itself says all there is to know."""

    def forget(self, request: int) -> None:
        """Drop the place of a request."""
        self._expected.pop(request, None)

    def _draft(self, sequence: SequenceView, budget: int) -> DraftTree:
        tokens = sequence.request.prediction or self._tokens
        if budget <= 0 or not tokens:
            return EMPTY
        expected = self._expected.get(sequence.id)
        if expected is None:
            expected = self._expected[sequence.id] = _Expected(tokens)
        _read(expected, sequence.tokens, len(sequence.request.prompt))
        starts = _continuations(expected, sequence.tokens)
        tree = TreeBuilder()
        for rank, (start, match) in enumerate(starts):
            part = -(-(budget - len(tree)) // (len(starts) - rank))  # rounded up: the best guess first
            node = -1
            for depth, token in enumerate(expected.tokens[start : start + part]):
                node = tree.add(node, token, trust(match + depth))
        return tree.build(self.name)


def _read(expected: _Expected, tokens: list[int], num_prompt: int) -> None:
    """Follow what was written since the last step."""
    place = expected.place
    for end in range(num_prompt + place.num_read + 1, len(tokens) + 1):
        place.num_read += 1
        place.num_away += 1
        _follow(place, expected.tokens, tokens[end - 1])
        if place.at is None and place.num_read >= _SYNC_TOKENS:
            place.at = expected.find(tuple(tokens[end - _SYNC_TOKENS : end]), place.home)
            place.streak = _SYNC_TOKENS


def _follow(place: _Place, expected: list[int], token: int) -> None:
    if place.at is None or place.at >= len(expected) or expected[place.at] != token:
        place.at = None
        return
    place.at += 1
    place.streak += 1
    # Only here: a place that was found again may be wrong, so it becomes home when it goes on agreeing.
    place.home, place.num_away = place.at, 0


def _continuations(expected: _Expected, tokens: list[int]) -> list[tuple[int, int]]:
    """Return (start in the prediction, length of match that it counts for), best first."""
    place = expected.place
    if place.at is not None:
        return [(place.at, place.streak)]
    if place.num_away > _GUESSED_EDITS:
        return []
    home, written = place.home, place.num_away
    guesses = [(home + written, 1), (home, 1)]  # as many tokens replaced as written; or put in
    try:
        near = expected.tokens.index(tokens[-1], home, home + _NEAR) + 1  # tokens left out before this one
    except ValueError:
        return guesses
    return [(near, 2), *(guess for guess in guesses if guess[0] != near)]
