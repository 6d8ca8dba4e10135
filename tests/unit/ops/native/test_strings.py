"""Strings of a header, read in C++: those of the loop in Python, or none at all."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("outpace.ops.native")
from outpace.errors import UsageError
from outpace.ops.native import read_strings

GIVEN = ["", "a", "grün", "Ġthe", "\0", "😀" * 300]


def spelled(strings: list[str]) -> bytes:
    return b"".join(struct.pack("<Q", len(string.encode())) + string.encode() for string in strings)


def read(content: bytes, count: int, start: int = 0, end: int | None = None) -> tuple[list[str], int] | None:
    return read_strings(np.frombuffer(content, np.uint8), start, len(content) if end is None else end, count)


def test_strings_are_read_from_their_place_and_end_at_theirs() -> None:
    content = b"xyz" + spelled(GIVEN) + b"tail"
    assert read(content, len(GIVEN), start=3) == (GIVEN, len(content) - 4)
    assert read(content, 2, start=3) == (["", "a"], 3 + 8 + 9)
    assert read(content, 0, start=3) == ([], 3)


@pytest.mark.parametrize("length", [5, 1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_a_string_that_goes_beyond_the_end_is_none(length: int) -> None:
    assert read(struct.pack("<Q", length) + b"abcd", 1) is None
    assert read(spelled(["abcd"]) + struct.pack("<Q", length) + b"abcd", 2) is None


def test_the_end_is_the_one_that_is_given() -> None:
    content = spelled(["abcd", "efgh"])
    for end in range(2, len(content)):
        assert read(content, 2, end=end) is None
    assert read(content, 2) == (["abcd", "efgh"], len(content))


@pytest.mark.parametrize("wrong", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"])
def test_what_is_not_utf_8_is_none(wrong: bytes) -> None:
    assert read(spelled(["a"]) + struct.pack("<Q", len(wrong)) + wrong, 2) is None


@pytest.mark.parametrize(("start", "end", "count"), [(-1, 4, 1), (3, 2, 0), (0, 9, 1), (0, 8, -1), (0, 8, 1 << 40)])
def test_a_place_outside_the_bytes_is_refused(start: int, end: int, count: int) -> None:
    with pytest.raises(UsageError, match="must lie in the bytes"):
        read_strings(np.zeros(8, np.uint8), start, end, count)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_all_strings_come_back(strings: list[str]) -> None:
    content = spelled(strings)
    assert read(content, len(strings)) == (strings, len(content))
