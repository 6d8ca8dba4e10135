from __future__ import annotations

from array import array

import numpy as np
import pytest

from outpace.errors import WeightsError
from outpace.models.trained import Entries, check_shapes
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
