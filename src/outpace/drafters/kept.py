"""What drafters learned of sequences that have ended, for those that continue them: the next turn of a chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

State = TypeVar("State")


class KeptStates(Generic[State]):
    """The states of the last few sequences, each with the tokens that it has read.

    A state is handed to one sequence only, which goes on changing it. Sequences of different salts never meet.
    """

    def __init__(self, capacity: int = 8) -> None:
        self._capacity = capacity
        self._kept: list[tuple[bytes, list[int], State]] = []  # the latest last

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, salt: bytes, tokens: list[int], state: State) -> None:
        """Keep a state that has read these tokens; the oldest makes room."""
        if tokens:
            self._kept = [*self._kept[1 - self._capacity :], (salt, tokens, state)]

    def take(self, salt: bytes, tokens: Sequence[int]) -> State | None:
        """Hand out the state that has read the longest beginning of `tokens`, if there is one."""
        best = -1
        for i, (own, read, _) in enumerate(self._kept):
            is_longer = best < 0 or len(read) > len(self._kept[best][1])
            if own == salt and is_longer and len(read) <= len(tokens) and read == list(tokens[: len(read)]):
                best = i
        if best < 0:
            return None
        return self._kept.pop(best)[2]
