from __future__ import annotations

import math
from array import array

import numpy as np
import pytest

from outpace.errors import WeightsError
from outpace.weights.trained import Entries, check_shapes
from tests.tiny import raw_tensor


def test_values_are_given_by_their_type() -> None:
    entries = Entries({"name": "eagle", "heads": 4, "taps": array("I", [1, 2]), "rows": [0, 7]}, "a file")
    assert (entries.text("name"), entries.count("heads")) == ("eagle", 4)
    assert (entries.counts("taps"), entries.counts("rows")) == ((1, 2), (0, 7))


@pytest.mark.parametrize("value", [None, -1, True, 1.5, "4", [4]])
def test_what_is_no_count_is_refused_with_file_and_key(value: object) -> None:
    with pytest.raises(WeightsError, match="a file: heads must be an integer of at least 0, is "):
        Entries({"heads": value}, "a file").count("heads")


@pytest.mark.parametrize("value", [None, 1, "12", [1, -1], [1, True], [1.0], {"a": 1}])
def test_what_is_no_list_of_counts_is_refused_with_file_and_key(value: object) -> None:
    with pytest.raises(WeightsError, match="a file: taps must be a list of integers of at least 0, is "):
        Entries({"taps": value}, "a file").counts("taps")


def test_fractions_are_numbers_from_0_to_1() -> None:
    assert Entries({"a": array("f", [0.5, 0.25]), "b": [1, 0]}, "a file").fractions("a") == (0.5, 0.25)
    for value in (None, 0.5, [1.5], [-0.1], ["a"], [True]):
        with pytest.raises(WeightsError, match=r"a file: a must be a list of numbers in \[0, 1\], is "):
            Entries({"a": value}, "a file").fractions("a")


def test_what_is_no_text_is_refused_with_file_and_key() -> None:
    with pytest.raises(WeightsError, match="a file: kind must be a string, is None"):
        Entries({}, "a file").text("kind")


def test_tensors_must_be_exactly_those_of_the_network() -> None:
    tensors = {"a": raw_tensor("a", np.zeros((2, 3), np.float32)), "b": raw_tensor("b", np.zeros(3, np.float32))}
    check_shapes("eagle", tensors, {"a": (2, 3), "b": (3,)})
    with pytest.raises(WeightsError, match=r"must be a, c \(eagle\); look at \['b', 'c'\]"):
        check_shapes("eagle", tensors, {"a": (2, 3), "c": (3,)})
    with pytest.raises(WeightsError, match=r"'b' of the drafter must have shape \(4,\), has \(3,\)"):
        check_shapes("eagle", tensors, {"a": (2, 3), "b": (4,)})


def test_what_is_absent_may_have_a_default() -> None:
    entries = Entries({"eps": 1e-5, "whole": 2, "on": True, "form": "each"}, "a file")
    assert (entries.number("eps"), entries.number("whole"), entries.number("other", 0.5)) == (1e-5, 2.0, 0.5)
    assert (entries.flag("on", False), entries.flag("off", False), entries.count("rows", 3)) == (True, False, 3)
    assert (entries.choice("form", ("none", "each"), "none"), entries.choice("x", ("a", "b"), "b")) == ("each", "b")


@pytest.mark.parametrize("value", [0, -1.0, math.inf, math.nan, True, "1", None, [1.0]])
def test_what_is_no_number_above_zero_is_refused(value: object) -> None:
    with pytest.raises(WeightsError, match="a file: eps must be a number above 0"):
        Entries({"eps": value}, "a file").number("eps")


def test_what_is_no_flag_and_no_choice_is_refused_with_what_there_is() -> None:
    with pytest.raises(WeightsError, match="a file: on must be true or false, is 1"):
        Entries({"on": 1}, "a file").flag("on", False)
    for value in ("all", 3, None, ["each"]):
        with pytest.raises(WeightsError, match="a file: form must be one of none, each"):
            Entries({"form": value}, "a file").choice("form", ("none", "each"), "none")
