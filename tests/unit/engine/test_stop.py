from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from outpace.engine.stop import Output
from outpace.errors import UsageError
from outpace.tokenizer import Detokenizer, Tokenizer
from tests.vocabularies import byte_level_metadata

PIECES = ["", "a", "b", "ab", "ba", "aab", "é", "\n", "<", "END", "E", "N", "D", "xEN", "Dx", "abcdef"]


def detokenizer() -> Detokenizer:
    """Return one whose token i shows PIECES[i]."""
    return Detokenizer(lambda ids: "".join(PIECES[i] for i in ids))


def ids(*pieces: str) -> list[int]:
    return [PIECES.index(piece) for piece in pieces]


def output(*stop_strings: str, stop_tokens: Sequence[str] = (), max_new_tokens: int = 100, room: int = 100) -> Output:
    return Output(
        max_new_tokens=max_new_tokens,
        room=room,
        stop_tokens=frozenset(ids(*stop_tokens)),
        stop_strings=stop_strings,
        detokenizer=detokenizer(),
    )


def test_a_stop_token_is_kept_as_the_last_token_and_never_shown() -> None:
    out = output(stop_tokens=["END"])
    assert out.extend(ids("a", "END", "b")) == "stop"
    assert (out.tokens, out.text, out.finish_reason) == (ids("a", "END"), "a", "stop")


def test_a_stop_token_that_spells_a_stop_string_ends_the_text_as_a_token() -> None:
    out = output("END", "N", stop_tokens=["END"])
    assert out.extend(ids("a", "END")) == "stop"
    assert (out.tokens, out.text) == (ids("a", "END"), "a")


@pytest.mark.parametrize(
    ("emitted", "kept", "text"),
    [
        (["a", "END", "b"], ["a"], "a"),  # one token
        (["a", "E", "N", "D"], ["a"], "a"),  # spans tokens
        (["a", "xEN", "Dx"], ["a", "xEN"], "ax"),  # begins and ends inside tokens
        (["END"], [], ""),  # nothing is left
        (["", "", "END"], [], ""),  # tokens without text cover nothing
        (["a", "", "END"], ["a"], "a"),
        (["E", "E", "N", "D"], ["E"], "E"),  # a false start
        (["E", "N", "é", "E", "N", "D"], ["E", "N", "é"], "ENé"),
    ],
)
def test_a_stop_string_ends_the_text_before_it_with_the_fewest_tokens(
    emitted: list[str], kept: list[str], text: str
) -> None:
    out = output("END")
    assert out.extend(ids(*emitted)) == "stop"
    assert (out.tokens, out.text) == (ids(*kept), text)


def test_the_earliest_stop_string_wins_when_several_land_in_one_path() -> None:
    out = output("END", "ba", "\n")
    assert out.extend(ids("a", "ab", "a", "\n", "END")) == "stop"
    assert (out.tokens, out.text) == (ids("a", "ab"), "aa")


def test_within_one_token_the_occurrence_that_begins_first_wins() -> None:
    assert output("cd", "abcdef").extend(ids("abcdef")) == "stop"
    out = output("cd", "bcde")
    out.extend(ids("abcdef"))
    assert out.text == "a"


def test_a_stop_string_is_found_within_characters_that_span_tokens() -> None:
    tokenizer = Tokenizer.from_gguf(byte_level_metadata())
    tokens = tokenizer.encode("go 鑫 stop")
    out = Output(max_new_tokens=99, room=99, stop_strings=["鑫"], detokenizer=tokenizer.detokenizer())
    assert out.extend(tokens) == "stop"
    assert out.text == "go "
    assert tokenizer.decode(out.tokens).startswith("go ")
    assert "�" not in tokenizer.decode(out.tokens)


def test_length_comes_before_context_and_stop_before_both() -> None:
    assert output(max_new_tokens=2, room=2).extend(ids("a", "b")) == "length"
    assert output(max_new_tokens=3, room=2).extend(ids("a", "b")) == "context"
    assert output(max_new_tokens=2, room=3).extend(ids("a", "b")) == "length"
    assert output("b", max_new_tokens=2, room=2).extend(ids("a", "b")) == "stop"
    assert output(stop_tokens=["b"], max_new_tokens=2, room=2).extend(ids("a", "b")) == "stop"
    assert output(max_new_tokens=2, room=3).extend(ids("a")) is None


def test_tokens_beyond_the_limit_are_not_kept() -> None:
    out = output(max_new_tokens=2)
    out.extend(ids("a", "b", "END"))
    assert (out.tokens, out.text) == (ids("a", "b"), "ab")


def test_what_may_begin_a_stop_string_is_held_back_with_its_tokens() -> None:
    out = output("END")
    out.extend(ids("a", "E"))
    assert out.take() == ("a", ids("a"))
    out.extend(ids("N"))
    assert out.take() == ("", [])
    out.extend(ids("b"))
    assert out.take() == ("ENb", ids("E", "N", "b"))


def test_a_token_that_covers_shown_text_is_released_though_its_end_is_held_back() -> None:
    out = output("END")
    out.extend(ids("xEN"))
    assert out.take() == ("x", ids("xEN"))
    out.extend(ids("Dx"))
    assert out.take() == ("", [])
    assert (out.tokens, out.text) == (ids("xEN"), "x")


def test_held_back_text_is_text_once_the_output_ends_without_the_stop_string() -> None:
    out = output("END", max_new_tokens=2)
    out.extend(ids("E", "N"))
    assert out.take() == ("EN", ids("E", "N"))
    out = output("END")
    out.extend(ids("a", "E"))
    out.finish("cancelled")
    assert out.take() == ("aE", ids("a", "E"))
    assert out.finish_reason == "cancelled"


def test_an_output_that_has_ended_keeps_its_reason() -> None:
    out = output(max_new_tokens=1)
    out.extend(ids("a"))
    out.finish("cancelled")
    assert out.finish_reason == "length"


def test_without_a_detokenizer_there_is_no_text_and_stop_strings_are_refused() -> None:
    out = Output(max_new_tokens=9, room=9, stop_tokens=frozenset([7]))
    assert out.extend([5, 6]) is None
    assert out.take() == ("", [5, 6])
    assert out.extend([7, 8]) == "stop"
    assert (out.tokens, out.text, out.take()) == ([5, 6, 7], "", ("", [7]))
    with pytest.raises(UsageError, match="stop strings need a tokenizer"):
        Output(max_new_tokens=9, room=9, stop_strings=["x"])


@pytest.mark.parametrize("stop_strings", ["END", ["END", ""]])
def test_stop_strings_that_are_no_list_or_empty_are_refused(stop_strings: Sequence[str]) -> None:
    with pytest.raises(UsageError, match="must be a list of strings that are not empty"):
        Output(max_new_tokens=9, room=9, stop_strings=stop_strings, detokenizer=detokenizer())


def specification(
    tokens: list[int], stops: list[str], end: int | None, limit: int
) -> tuple[list[int], str, str | None]:
    """Return tokens, text and reason as the rules say, searching the whole text after every token."""
    text = ""
    for count, token in enumerate(tokens, 1):
        if token == end:
            return tokens[:count], text, "stop"
        text += PIECES[token]
        if places := [text.find(stop) for stop in stops if stop in text]:
            text = text[: min(places)]
            shown = ["".join(PIECES[t] for t in tokens[:k]) for k in range(count + 1)]
            covering = next(k for k in range(count + 1) if len(shown[k]) >= len(text))
            return tokens[:covering], text, "stop"
        if count == limit:
            return tokens[:count], text, "length"
    return tokens, text, None


_tokens = st.lists(st.integers(0, len(PIECES) - 1), max_size=30)
_stops = st.lists(st.text("abEND\né<", min_size=1, max_size=4), max_size=3)


@given(_tokens, _stops, st.none() | st.integers(0, len(PIECES) - 1), st.integers(1, 40), st.data())
@example(ids("a", "a", "b"), ["aab"], None, 40, None)
def test_text_tokens_and_reason_follow_the_rules_however_steps_and_takes_fall(
    tokens: list[int], stops: list[str], end: int | None, limit: int, data: st.DataObject | None
) -> None:
    out = Output(
        max_new_tokens=limit,
        room=99,
        stop_tokens=frozenset() if end is None else frozenset([end]),
        stop_strings=stops,
        detokenizer=detokenizer(),
    )
    text, taken, position = "", list[int](), 0
    while position < len(tokens) and out.finish_reason is None:
        step = data.draw(st.integers(1, 5)) if data else 1
        out.extend(tokens[position : position + step])
        position += step
        if data is None or data.draw(st.booleans()):
            more_text, more_tokens = out.take()
            text, taken = text + more_text, taken + more_tokens
    assert (out.tokens, out.text, out.finish_reason) == specification(tokens, stops, end, limit)
    out.finish("cancelled")
    more_text, more_tokens = out.take()
    assert (text + more_text, taken + more_tokens) == (out.text, out.tokens)  # nothing was taken back
    assert out.take() == ("", [])


@given(_tokens, _stops)
def test_all_but_the_possible_beginning_of_a_stop_string_is_released(tokens: list[int], stops: list[str]) -> None:
    out = Output(max_new_tokens=99, room=99, stop_strings=stops, detokenizer=detokenizer())
    out.extend(tokens)
    whole = out.text
    released, _ = out.take()
    held = whole[len(released) :]
    assert not held or any(stop.startswith(held) for stop in stops)


def test_the_text_is_searched_once_not_once_a_token() -> None:
    class Counted(str):
        seen = 0

        def find(self, *args: object) -> int:  # type: ignore[override]
            Counted.seen += len(self)
            return super().find(*args)  # type: ignore[arg-type]

        def __add__(self, other: str) -> Counted:
            return Counted(str(self) + other)

        def __radd__(self, other: str) -> Counted:
            return Counted(other + str(self))

    pieces = Detokenizer(lambda tokens: "".join(PIECES[t] for t in tokens))
    push = pieces.push
    pieces.push = lambda token: Counted(push(token))  # type: ignore[method-assign]
    out = Output(max_new_tokens=10**4, room=10**4, stop_strings=["END"], detokenizer=pieces)
    out.extend(ids("ab") * 2000)
    assert 4000 <= Counted.seen <= 4000 + 2 * 2000
