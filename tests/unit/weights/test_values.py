from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from outpace.errors import WeightsError
from outpace.weights.values import Values, is_positive, shown


def values(**raw: Any) -> Values:
    return Values(raw, "config.json", {"size": "metadata a.size"})


Read = Callable[[Values], Any]


@pytest.mark.parametrize(
    ("read", "accepted", "refused", "wanted"),
    [
        (lambda v: v.count("x", 9), [1, 9], [0, 10, 2.0, True, "2", [2], None], r"integer in \[1, 9\]|null"),
        (lambda v: v.count("x", 9, minimum=0), [0], [-1], r"integer in \[0, 9\]"),
        (lambda v: v.number("x", 9), [1, 9.0, 1e-9], [0, 9.1, -1, float("nan"), True, "2"], r"number in \(0, 9\]"),
        (lambda v: v.flag("x"), [True, False], [0, 1, "true", []], "true or false"),
        (lambda v: v.text("x"), ["", "a", None], [1, ["a"], b"a"], "a string"),
        (lambda v: v.items("x"), [[], [1, None]], [{}, "ab", 1], "a list"),
        (lambda v: v.token("x"), ["a", None], [{"text": "a"}, {"content": 1}, ["a"], 5], "a token"),
        (lambda v: v.tokens("x"), [["a"], []], [["a", 1], "a"], "a token|a list"),
    ],
)
def test_a_value_of_another_type_or_out_of_range_is_refused(
    read: Read, accepted: list[Any], refused: list[Any], wanted: str
) -> None:
    for value in accepted:
        assert read(values(x=value)) == value
    for value in refused:
        with pytest.raises(WeightsError, match=rf"^config\.json: x .*({wanted})"):
            read(values(x=value))


def test_absent_and_null_are_two_things() -> None:
    def read(**raw: Any) -> int:
        return values(**raw).count("x", 9, absent=3, null=5)

    assert (read(), read(x=None), read(x=7)) == (3, 5, 7)
    with pytest.raises(WeightsError, match=r"config\.json: x is missing"):
        values().flag("x", null=True)
    with pytest.raises(WeightsError, match=r"config\.json: x is null"):
        values(x=None).flag("x", absent=True)


def test_a_default_of_false_is_a_default() -> None:
    assert values().flag("x", absent=False) is False
    assert values(x=None).flag("x", null=False) is False
    with pytest.raises(WeightsError, match=r"integer in \[1, 9\], is 0"):
        values().count("x", 9, absent=0)


def test_whether_a_key_is_given_or_null_can_be_asked() -> None:
    found = values(a=0, b=None)
    assert [found.is_given(key) for key in "abc"] == [True, False, False]
    assert [found.is_null(key) for key in "abc"] == [False, True, False]


def test_absent_objects_and_lists_are_empty() -> None:
    assert values().items("x") == values(x=None).items("x") == values().tokens("x") == []
    assert values().object("x").raw == values(x=None).object("x").raw == {}


def test_a_token_may_be_an_object_with_its_content() -> None:
    found = values(x={"content": "<s>", "lstrip": False}, y=["a", {"content": "b"}])
    assert (found.token("x"), found.tokens("y")) == ("<s>", ["a", "b"])


def test_errors_name_the_way_to_a_key_as_the_file_calls_it() -> None:
    with pytest.raises(WeightsError, match=r"^config\.json: metadata a\.size must be an integer in \[1, 9\], is '3'$"):
        values(size="3").count("size", 9)
    with pytest.raises(WeightsError, match=r"^config\.json: rope: factor is missing$"):
        values(rope={}).object("rope").number("factor", 9)


def test_errors_are_of_the_readers_class_even_inside_an_object() -> None:
    class Own(WeightsError):
        pass

    found = Values({"x": {"y": 1}, "z": 1}, "here", failure=Own)
    for read in (lambda: found.object("x").text("y"), lambda: found.flag("z")):
        with pytest.raises(Own):
            read()


@pytest.mark.parametrize("value", ["x" * 10_000, ["y" * 100] * 100, 10**1000, {"a": {"b": [list(range(100))] * 9}}])
def test_a_value_is_shown_in_eighty_characters_whatever_it_is(value: Any) -> None:
    assert 10 < len(shown(value)) <= 80


def test_short_values_are_shown_as_they_are() -> None:
    assert [shown(value) for value in ("a", 1.5, None, [1, "b"])] == ["'a'", "1.5", "None", "[1, 'b']"]


def test_true_is_not_a_positive_number() -> None:
    assert [is_positive(value, 2) for value in (1, 2.0, True, 0, 2.1, "1", None)] == [True, True, *[False] * 5]
