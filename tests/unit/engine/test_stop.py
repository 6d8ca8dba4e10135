from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from outpace.engine.stop import Output
from outpace.errors import UsageError
from outpace.tokenizer import Detokenizer, Spelling, Tokenizer
from tests.decoding import request
from tests.vocabularies import byte_level_metadata, sentencepiece_metadata

PIECES = ["", "a", "b", "ab", "ba", "aab", "é", "\n", "<", "END", "E", "N", "D", "xEN", "Dx", "abcdef"]


SPELLING = Spelling(lambda ids: "".join(PIECES[i] for i in ids), PIECES.__getitem__, len(PIECES))


def ids(*pieces: str) -> list[int]:
    return [PIECES.index(piece) for piece in pieces]


def output(
    *stop: str,
    stop_tokens: Sequence[int] = (),
    max_new_tokens: int = 100,
    room: int = 100,
    detokenizer: Detokenizer | None = None,
) -> Output:
    asked = request([0], stop=stop, stop_tokens=stop_tokens, max_new_tokens=max_new_tokens)
    return Output(asked, 1 + room, detokenizer or Detokenizer(SPELLING))


def test_a_stop_token_is_kept_as_the_last_token_and_never_shown() -> None:
    out = output(stop_tokens=ids("END"))
    assert out.extend(ids("a", "END", "b")) == "stop"
    assert (out.tokens, out.text, out.finish_reason) == (ids("a", "END"), "a", "stop")


def test_a_stop_token_that_spells_a_stop_string_ends_the_text_as_a_token() -> None:
    out = output("END", "N", stop_tokens=ids("END"))
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
    out = output("鑫", detokenizer=tokenizer.detokenizer())
    assert out.extend(tokens) == "stop"
    assert out.text == "go "
    assert tokenizer.decode(out.tokens).startswith("go ")
    assert "�" not in tokenizer.decode(out.tokens)


def test_length_comes_before_context_and_stop_before_both() -> None:
    assert output(max_new_tokens=2, room=2).extend(ids("a", "b")) == "length"
    assert output(max_new_tokens=3, room=2).extend(ids("a", "b")) == "context"
    assert output(max_new_tokens=2, room=3).extend(ids("a", "b")) == "length"
    assert output("b", max_new_tokens=2, room=2).extend(ids("a", "b")) == "stop"
    assert output(stop_tokens=ids("b"), max_new_tokens=2, room=2).extend(ids("a", "b")) == "stop"
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
    out = Output(request([0], stop_tokens=[7]), 99)
    assert out.extend([5, 6]) is None
    assert out.take() == ("", [5, 6])
    assert out.extend([7, 8]) == "stop"
    assert (out.tokens, out.text, out.take()) == ([5, 6, 7], "", ("", [7]))
    with pytest.raises(UsageError, match="stop strings need a tokenizer"):
        Output(request([0], stop="x"), 99)


# Control tokens have text that is searched, but not shown.
CONTROLS = frozenset(ids("<", "END"))


def hiding(*stop: str, **options: Any) -> Output:
    return output(*stop, detokenizer=Detokenizer(SPELLING, CONTROLS), **options)


@pytest.mark.parametrize(
    ("stop", "emitted", "kept", "text"),
    [
        ("END", ["a", "END", "b"], ["a"], "a"),  # the control token itself
        ("N", ["a", "END", "b"], ["a"], "a"),  # a part of it
        ("bEND", ["a", "ab", "END", "b"], ["a", "ab"], "aa"),  # it, and text before it
        ("ENDba", ["a", "END", "b", "ab"], ["a"], "a"),  # it, and text after it
        ("<END", ["a", "<", "END", "b"], ["a"], "a"),  # two of them
        ("Db", ["a", "END", "b"], ["a"], "a"),
        ("b", ["a", "END", "<", "ab"], ["a", "END", "<", "ab"], "aa"),  # text after hidden tokens
        ("a", ["<", "END", "a"], [], ""),
    ],
)
def test_a_stop_string_may_spell_a_control_token(stop: str, emitted: list[str], kept: list[str], text: str) -> None:
    for step in (1, len(emitted)):
        out = hiding(stop)
        for start in range(0, len(emitted), step):
            if out.extend(ids(*emitted[start : start + step])):
                break
        assert (out.tokens, out.text, out.finish_reason) == (ids(*kept), text, "stop")
        assert out.take() == (text, ids(*kept))


def test_control_tokens_are_held_back_while_they_may_begin_a_stop_string() -> None:
    out = hiding("ENDb")
    out.extend(ids("a", "END"))
    assert out.take() == ("a", ids("a"))
    out.extend(ids("a"))
    assert out.take() == ("a", ids("END", "a"))


def test_a_stop_string_that_begins_before_a_stop_token_and_ends_in_it_ends_the_text_before_both() -> None:
    out = hiding("\nEND", stop_tokens=ids("END"))
    assert out.extend(ids("a", "\n", "END")) == "stop"
    assert (out.tokens, out.text) == (ids("a"), "a")
    out = hiding("\nEND", stop_tokens=ids("END"))
    assert out.extend(ids("a", "END")) == "stop"
    assert (out.tokens, out.text) == (ids("a", "END"), "a")


BYTE_LEVEL = Tokenizer.from_gguf(byte_level_metadata())
SENTENCEPIECE = Tokenizer.from_gguf(sentencepiece_metadata())
HALF = BYTE_LEVEL.encode_text("鑫")[:2]
IM_END = BYTE_LEVEL.encode_text("<|im_end|>")


@pytest.mark.parametrize("reason", ["stop", "length", "context", "cancelled"])
def test_half_a_character_at_the_end_is_shown_as_decode_shows_it(reason: str) -> None:
    tokens = [*BYTE_LEVEL.encode_text("go "), *HALF, *(IM_END if reason == "stop" else [])]
    out = output(
        stop_tokens=IM_END,
        max_new_tokens=len(tokens) if reason == "length" else 99,
        room=len(tokens) if reason == "context" else 99,
        detokenizer=BYTE_LEVEL.detokenizer(),
    )
    out.extend(tokens)
    first, _ = out.take()
    out.finish("cancelled")
    last, _ = out.take()
    assert out.finish_reason == reason
    assert out.tokens == tokens
    assert first + last == out.text == BYTE_LEVEL.decode(tokens) == "go \ufffd"


def test_a_replacement_character_can_be_a_stop_string_and_halves_count_when_they_are_final() -> None:
    written = BYTE_LEVEL.encode_text("go \ufffd on")
    out = output("\ufffd", detokenizer=BYTE_LEVEL.detokenizer())
    assert out.extend(written) == "stop"
    assert out.text == "go "
    tokens = [*BYTE_LEVEL.encode_text("go "), *HALF]
    out = output("\ufffd", max_new_tokens=len(tokens), detokenizer=BYTE_LEVEL.detokenizer())
    assert out.extend(tokens) == "stop"
    assert (out.text, BYTE_LEVEL.decode(out.tokens)) == ("go ", "go ")


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE], ids=["byte-level", "sentencepiece"])
@given(data=st.data())
def test_streamed_returned_and_decoded_text_are_one_however_tokens_are_cut_into_steps(
    tokenizer: Tokenizer, data: st.DataObject
) -> None:
    tokens = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 2), min_size=1, max_size=30))
    check_one_text(tokenizer, tokens, data)


def check_one_text(tokenizer: Tokenizer, tokens: list[int], data: st.DataObject) -> None:
    """Write `tokens` in steps; an end by length, by context, by an end token, or by the caller changes nothing."""
    end = data.draw(st.sampled_from([None, *sorted(tokenizer.control_ids)]))
    limits = data.draw(st.sampled_from([{"max_new_tokens": len(tokens)}, {"room": len(tokens)}, {}]))
    stop = data.draw(st.sampled_from([(), ("never written",)]))
    out = output(*stop, stop_tokens=[] if end is None else [end], detokenizer=tokenizer.detokenizer(), **limits)
    chunks, position = [], 0
    while position < len(tokens) and out.finish_reason is None:
        step = data.draw(st.integers(1, 8))
        out.extend(tokens[position : position + step])
        position += step
        chunks.append(out.take()[0])
    out.finish("cancelled")
    chunks.append(out.take()[0])
    assert "".join(chunks) == out.text == tokenizer.decode(out.tokens)


def specification(
    tokens: list[int], stops: list[str], end: int | None, limit: int, hidden: frozenset[int]
) -> tuple[list[int], str, str | None]:
    """Return tokens, text and reason as the rules say, searching the whole text after every token.

    A searched text is a list of (character, is it shown).
    """
    searched: list[tuple[str, bool]] = []
    shown = [""]
    for count, token in enumerate(tokens, 1):
        before = len(searched)
        searched += [(character, token != end and token not in hidden) for character in PIECES[token]]
        shown.append("".join(character for character, seen in searched if seen))
        everything = "".join(character for character, _ in searched)
        places = [everything.find(stop) for stop in stops if stop in everything]
        if places and (token != end or min(places) < before):
            text = "".join(character for character, seen in searched[: min(places)] if seen)
            covering = next(k for k in range(count + 1) if len(shown[k]) >= len(text))
            return tokens[:covering], text, "stop"
        if token == end:
            return tokens[:count], shown[-1], "stop"
        if count == limit:
            return tokens[:count], shown[-1], "length"
    return tokens, shown[-1], None


_tokens = st.lists(st.integers(0, len(PIECES) - 1), max_size=30)
_stops = st.lists(st.text("abEND\né<", min_size=1, max_size=4), max_size=3)


@given(
    _tokens,
    _stops,
    st.none() | st.integers(0, len(PIECES) - 1),
    st.integers(1, 40),
    st.frozensets(st.integers(0, len(PIECES) - 1), max_size=4),
    st.data(),
)
@example(ids("a", "a", "b"), ["aab"], None, 40, frozenset(), None)
def test_text_tokens_and_reason_follow_the_rules_however_steps_and_takes_fall(
    tokens: list[int],
    stops: list[str],
    end: int | None,
    limit: int,
    hidden: frozenset[int],
    data: st.DataObject | None,
) -> None:
    stop_tokens = [] if end is None else [end]
    out = output(*stops, stop_tokens=stop_tokens, max_new_tokens=limit, detokenizer=Detokenizer(SPELLING, hidden))
    text, taken, position = "", list[int](), 0
    while position < len(tokens) and out.finish_reason is None:
        step = data.draw(st.integers(1, 5)) if data else 1
        out.extend(tokens[position : position + step])
        position += step
        if data is None or data.draw(st.booleans()):
            more_text, more_tokens = out.take()
            text, taken = text + more_text, taken + more_tokens
    assert (out.tokens, out.text, out.finish_reason) == specification(tokens, stops, end, limit, hidden)
    out.finish("cancelled")
    more_text, more_tokens = out.take()
    assert (text + more_text, taken + more_tokens) == (out.text, out.tokens)  # nothing was taken back
    assert out.take() == ("", [])


@given(_tokens, _stops)
def test_all_but_the_possible_beginning_of_a_stop_string_is_released(tokens: list[int], stops: list[str]) -> None:
    out = output(*stops)
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

    pieces = Detokenizer(SPELLING)
    push = pieces.push
    pieces.push = lambda token: Counted(push(token))  # type: ignore[method-assign]
    out = output("END", max_new_tokens=10**4, room=10**4, detokenizer=pieces)
    out.extend(ids("ab") * 2000)
    assert 4000 <= Counted.seen <= 4000 + 2 * 2000
