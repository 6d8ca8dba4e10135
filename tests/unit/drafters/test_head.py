from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from outpace.drafters.head import Head

TOKENS = [7, 3, 9, 1, 4]  # of the rows 0 ... 4; the first two are fixed


def packing(calls: list[list[int]]) -> Any:
    def pack(rows: Sequence[int]) -> Any:
        calls.append(list(rows))
        return tuple(rows)

    return pack


def test_a_sequence_has_the_fixed_rows_then_those_of_its_own_tokens_in_their_order() -> None:
    head = Head(TOKENS, 2, packing([]))
    own = head.start()
    assert own.tokens.tolist() == [7, 3]
    head.look_at(own, [4, 7, 8, 4])  # 7 is fixed, 8 has no row
    assert own.rows == [4]
    assert own.tokens.tolist() == [7, 3, 4]
    head.look_at(own, [4, 7, 8, 4, 9, 1, 9])
    assert own.rows == [4, 2, 3]
    assert own.tokens.tolist() == [7, 3, 4, 9, 1]
    assert head.start().tokens.tolist() == [7, 3]  # other sequences are as they were


def test_rows_are_packed_once_until_a_token_is_new() -> None:
    calls: list[list[int]] = []
    head = Head(TOKENS, 2, packing(calls))
    own = head.start()
    head.look_at(own, [9])
    assert head.packed(own) == head.packed(own) == (2,)
    head.look_at(own, [9, 9, 7])
    head.packed(own)
    assert calls == [[2]]
    head.look_at(own, [9, 9, 7, 4])
    head.packed(own)
    assert calls == [[2], [2, 4]]
