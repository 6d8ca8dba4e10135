from __future__ import annotations

from typing import Any

import numpy as np

from outpace.drafters.features import HeldRows, HiddenStates
from outpace.runner import Pass, Runner, ScheduledSequence
from outpace.types.tree import DraftTree, Verification
from tests.decoding import request, tiny_ops, tiny_runner

TAPS = (1, 2)
TOKENS = list(range(40, 80))


def held(count: int, first: int = 0) -> HeldRows:
    return HeldRows(first, [((), position) for position in range(first, first + count)])


def step(target: Runner, table: Any, tokens: list[int], end: int, accepted: int | None = None, id: int = 0) -> Pass:
    """Compute [table.length, end), with a draft of the tokens behind if `accepted`, so many nodes; commit."""
    tree = DraftTree.chain(TOKENS[end : end + 3], "x") if accepted is not None else DraftTree()
    part = ScheduledSequence(table, request(tokens[:2]), tokens, end, tree, id=id)
    part.scored = accepted is not None
    passed = target.forward([part], TAPS)
    if accepted is not None:
        part.verification = Verification(list(range(accepted)), [0] * 4)
    kept = range(part.num_pending + (accepted or 0))
    table.commit(kept, TOKENS[part.start : part.start + len(kept)])
    return passed


def test_rows_are_cut_behind_and_dropped_before_a_position() -> None:
    rows = held(6, first=4)
    assert rows.end == 10
    assert [row for _, row in rows.of(5, 8)] == [5, 6, 7]
    rows.cut(8)
    rows.drop(5)
    assert (rows.first, rows.end) == (5, 8)
    rows.drop(99)
    assert (rows.first, rows.rows) == (8, [])


def test_a_position_that_does_not_follow_on_starts_anew() -> None:
    for position in (2, 12):
        rows = held(4, first=6)
        rows.cut(position)
        assert (rows.first, rows.rows) == (position, [])


def test_what_is_kept_are_the_states_of_the_committed_positions_and_of_no_rejected_guess() -> None:
    target = tiny_runner(ops=tiny_ops(), vocab_size=97)
    states = HiddenStates(target.ops, target.cache, TAPS)
    table = target.cache.open(())
    states.keep(step(target, table, TOKENS[:10], 6))
    states.keep(step(target, table, TOKENS[:10], 10, accepted=2))
    rows = states.of(0)
    assert (rows.first, rows.end) == (0, 12)
    found = states.gather(rows.of(3, 12))
    other = target.scratch(4)
    at_once = step(other, other.cache.open(()), TOKENS, 12).hidden
    for tap, x in zip(TAPS, found, strict=True):
        assert np.array_equal(target.ops.numpy(x), target.ops.numpy(at_once[tap])[3:12])


def test_a_sequence_that_goes_on_where_another_ended_finds_the_state_before() -> None:
    target = tiny_runner(ops=tiny_ops(), vocab_size=97)
    states = HiddenStates(target.ops, target.cache, TAPS)
    table = target.cache.open(())
    states.keep(step(target, table, TOKENS, 34))
    fork = table.fork()
    states.keep(step(target, fork, TOKENS, 37, id=1))
    assert (states.of(1).first, states.of(1).end) == (33, 37)
    prefix = target.cache.open(TOKENS[:33])
    assert prefix.length == 32  # a whole block
    states.keep(step(target, prefix, TOKENS, 34, id=2))
    assert (states.of(2).first, states.of(2).end) == (31, 34)
    (one,), (two,) = (states.gather(states.of(i).of(33, 34))[:1] for i in (1, 2))
    assert np.array_equal(target.ops.numpy(one), target.ops.numpy(two))


def test_where_nothing_is_known_before_rows_begin_with_the_pass() -> None:
    target = tiny_runner(ops=tiny_ops(), vocab_size=97)
    states = HiddenStates(target.ops, target.cache, TAPS)
    table = target.cache.open(())
    step(target, table, TOKENS, 20)
    states.keep(step(target, table, TOKENS, 30))
    assert (states.of(0).first, states.of(0).end) == (20, 30)


def test_the_oldest_ends_give_way() -> None:
    target = tiny_runner(ops=tiny_ops(), vocab_size=97)
    states = HiddenStates(target.ops, target.cache, TAPS)
    states._ends._capacity = 1
    table = target.cache.open(())
    states.keep(step(target, table, TOKENS, 10))
    states.keep(step(target, table, TOKENS, 20))
    assert states._ends.find(table, 10) is None
    assert states._ends.find(table, 20) is not None


def test_a_forgotten_sequence_holds_nothing() -> None:
    target = tiny_runner(ops=tiny_ops(), vocab_size=97)
    states = HiddenStates(target.ops, target.cache, TAPS)
    states.keep(step(target, target.cache.open(()), TOKENS, 10, id=5))
    assert len(states) == 1
    states.forget(5)
    states.forget(5)
    assert len(states) == 0
