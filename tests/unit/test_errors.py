from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from outpace.errors import UsageError, flag, instance, integer, items, one_of, real, shown, strings, token_ids, unknown


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize("value", [7, np.int64(7), np.uint8(7), np.array(7)])
def test_a_whole_number_of_any_library_is_an_int(value: Any) -> None:
    assert type(integer("k", value, 0, 9)) is int


@pytest.mark.parametrize(
    "value", [True, np.True_, 7.0, np.float32(7), "7", None, [7], b"7", np.array([7]), Unprintable()]
)
def test_what_is_no_whole_number_is_refused_by_name(value: Any) -> None:
    with pytest.raises(UsageError, match="k must be a whole number, got"):
        integer("k", value, 0, 9)


def test_a_number_out_of_range_is_refused_with_the_range() -> None:
    with pytest.raises(UsageError, match=r"k must be in \[0, 18446744073709551615\], got -1"):
        integer("k", -1, 0, 2**64 - 1)
    with pytest.raises(UsageError, match="k must be at least 1, got 0"):
        integer("k", 0, 1)
    with pytest.raises(UsageError, match=r"p must be in \[0, 1\], got 10{50}.*\.\.\."):
        real("p", 10**400, 0.0, 1.0)
    with pytest.raises(UsageError, match=r"p must be in \[0, 1\], got nan"):
        real("p", math.nan, 0.0, 1.0)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.float64(0.5), Fraction(1, 2)])
def test_a_number_of_any_library_is_a_float(value: Any) -> None:
    assert type(real("p", value, 0.0, 1.0)) is float


@pytest.mark.parametrize("value", [True, "0.5", None, [0.5], 0.5j, np.array([0.5])])
def test_what_is_no_number_is_refused_by_name(value: Any) -> None:
    with pytest.raises(UsageError, match="p must be a number, got"):
        real("p", value, 0.0, 1.0)


def test_only_truth_values_are_flags() -> None:
    assert flag("f", np.True_) is True
    assert flag("f", False) is False
    for value in (1, 0, "yes", None, []):
        with pytest.raises(UsageError, match="f must be True or False, got"):
            flag("f", value)


def test_a_list_is_a_list_tuple_set_or_array_and_no_string_and_no_mapping() -> None:
    for value in ([1, 2], (1, 2), {1, 2}, range(1, 3), np.array([1, 2])):
        assert items("x", value, "ids") == (1, 2)
    for wrong in ("12", b"12", bytearray(b"12"), {1: 2}, 12, None, iter([1]), np.array(1), np.ones((2, 2))):
        with pytest.raises(UsageError, match="x must be a list of ids, got"):
            items("x", wrong, "ids")


def test_one_string_is_a_list_of_strings_and_empty_ones_are_refused() -> None:
    assert strings("stop", "ab") == ("ab",)
    assert strings("stop", ["a", "b"]) == ("a", "b")
    for wrong in ("", ["a", ""], [5], [None], [b"a"]):
        with pytest.raises(UsageError, match="stop must hold strings of at least one character, got"):
            strings("stop", wrong)


def test_token_ids_are_ints_and_a_wrong_one_is_named_by_its_place() -> None:
    found = token_ids("ids", [np.int32(3), 4])
    assert found == (3, 4)
    assert {type(token) for token in found} == {int}
    with pytest.raises(UsageError, match=r"ids\[1\] must be a whole number, got 1.5"):
        token_ids("ids", [1, 1.5])
    with pytest.raises(UsageError, match=r"ids\[0\] must be at least 0, got -1"):
        token_ids("ids", [-1])


def test_names_are_checked_with_close_matches_and_types_by_name() -> None:
    with pytest.raises(UsageError, match="unknown kind 'exat': did you mean 'exact'"):
        one_of("kind", "exat", ("exact", "rejection"))
    with pytest.raises(UsageError, match="kind must be one of exact, rejection, got 5"):
        one_of("kind", 5, ("exact", "rejection"))
    with pytest.raises(UsageError, match="salt must be bytes, got 'x'"):
        instance("salt", "x", bytes, "bytes")
    assert "allowed: a, b" in str(unknown("name", "z", ("b", "a")))


def test_a_value_is_quoted_briefly_and_never_raises() -> None:
    assert shown("x" * 100) == "'" + "x" * 56 + "..."
    assert shown(Unprintable()) == "a Unprintable"
    assert shown(10**5000) == "a int"
