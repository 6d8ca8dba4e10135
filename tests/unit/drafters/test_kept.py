from __future__ import annotations

import pytest

from outpace.drafters import NGram, Suffix
from outpace.drafters.automaton import SuffixAutomaton
from outpace.drafters.kept import KeptStates
from tests.simulated import SimulatedView, plain, reciting, simulate

MELODY = [3, 1, 4, 1, 5, 9, 2, 6]


def test_a_state_goes_to_the_sequence_that_continues_it_and_only_once() -> None:
    kept: KeptStates[str] = KeptStates()
    kept.keep(b"", [1, 2], "short")
    kept.keep(b"", [1, 2, 3], "long")
    kept.keep(b"", [1, 9], "other")
    assert kept.take(b"", [1, 2, 3, 4]) == "long"
    assert kept.take(b"", [1, 2, 3, 4]) == "short"
    assert kept.take(b"", [1, 2, 3, 4]) is None
    assert len(kept) == 1


def test_a_state_that_has_read_more_than_the_sequence_has_is_of_no_use() -> None:
    kept: KeptStates[str] = KeptStates()
    kept.keep(b"", [1, 2, 3], "longer")
    assert kept.take(b"", [1, 2]) is None


def test_salts_keep_sequences_apart() -> None:
    kept: KeptStates[str] = KeptStates()
    kept.keep(b"mine", [1, 2], "secret")
    assert kept.take(b"yours", [1, 2, 3]) is None
    assert kept.take(b"mine", [1, 2, 3]) == "secret"


def test_the_oldest_makes_room() -> None:
    kept: KeptStates[int] = KeptStates(capacity=2)
    for i in range(3):
        kept.keep(b"", [i], i)
    assert [kept.take(b"", [i, 7]) for i in range(3)] == [None, 1, 2]


@pytest.mark.parametrize("make", [NGram, Suffix])
def test_the_next_turn_drafts_as_a_fresh_drafter_would(make: type) -> None:
    first = [1, *plain(reciting(MELODY), [1], 40)]
    prompt = [*first[:38], 7, 7]
    lived = make()
    simulate(lived, reciting(MELODY), [1], 40)
    again, fresh = simulate(lived, reciting(MELODY), prompt, 60), simulate(make(), reciting(MELODY), prompt, 60)
    assert again.trees == fresh.trees


def test_the_next_turn_reads_only_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    extend = SuffixAutomaton.extend
    monkeypatch.setattr(SuffixAutomaton, "extend", lambda self, token: (read.append(token), extend(self, token))[1])
    drafter = Suffix()
    turn = SimulatedView.start(1, list(range(50)))
    drafter.propose([turn], [8])
    drafter.forget(1)
    read.clear()
    drafter.propose([SimulatedView.start(2, [*range(50), 60, 61])], [8])
    assert read == [60, 61]
