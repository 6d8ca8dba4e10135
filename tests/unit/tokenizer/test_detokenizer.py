from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from outpace.tokenizer import Detokenizer, Tokenizer
from outpace.tokenizer.detokenizer import CONTEXT, MOST_HELD
from tests.vocabularies import byte_level_metadata, sentencepiece_metadata, texts

BYTE_LEVEL = Tokenizer.from_gguf(byte_level_metadata())
PIECES = Tokenizer.from_gguf(sentencepiece_metadata())
BOTH = pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, PIECES], ids=["byte-level", "sentencepiece"])


def pushed(tokenizer: Tokenizer, ids: Sequence[int], **options: bool) -> list[str]:
    detokenizer = tokenizer.detokenizer(**options)
    return [detokenizer.push(token) for token in ids]


@BOTH
@given(text=texts)
def test_pieces_of_a_text_make_the_text_and_no_piece_is_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode_text(text)
    shown = pushed(tokenizer, ids)
    assert "".join(shown) == tokenizer.decode(ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in shown)
    assert "".join(tokenizer.pieces(ids)) == tokenizer.decode(ids, skip_special=False)


@given(st.lists(st.integers(0, BYTE_LEVEL.vocab_size + 3), max_size=40), st.booleans())
@example([], True)
def test_any_tokens_at_all_show_what_decode_shows_but_for_an_incomplete_end(ids: list[int], skip: bool) -> None:
    whole = BYTE_LEVEL.decode(ids, skip_special=skip)
    shown = "".join(pushed(BYTE_LEVEL, ids, skip_special=skip))
    assert whole.startswith(shown)
    assert not whole[len(shown) :].strip("\ufffd")


@given(st.lists(st.integers(0, PIECES.vocab_size - 1), max_size=40))
def test_bytes_that_are_no_utf8_raise_nothing_and_hide_nothing_after_them(ids: list[int]) -> None:
    word = PIECES.encode_text("the fox")
    assert "".join(pushed(PIECES, [*ids, *word])).endswith("the fox")


def test_a_character_is_shown_with_its_last_byte() -> None:
    ids = PIECES.encode_text("鑫x")
    assert pushed(PIECES, ids) == ["", "", "", "鑫", "x"]
    assert pushed(PIECES, ids[:3]) == ["", "", ""]


def test_a_token_of_a_character_and_a_half_shows_the_character() -> None:
    spelled = {i: token for i in range(BYTE_LEVEL.vocab_size) if len(token := BYTE_LEVEL.token(i)) == 2}
    mixed = next(i for i, token in spelled.items() if token[0].isascii() and token[1] in "ÃÐ")
    rest = next(i for i in range(BYTE_LEVEL.vocab_size) if BYTE_LEVEL.token(i) == "©")
    first, second = pushed(BYTE_LEVEL, [mixed, rest])
    assert (first, second) == (BYTE_LEVEL.token(mixed)[0], BYTE_LEVEL.decode([mixed, rest])[1])


def test_bytes_that_spoil_a_character_already_shown_leave_it_shown() -> None:
    ids = [3 + 0x41, 3 + 0xFF, *PIECES.encode_text("a")[1:]]
    assert PIECES.decode(ids).startswith("\ufffd")  # the library gives up on the whole run of bytes
    assert "".join(pushed(PIECES, ids))[0] == "A"


def test_control_tokens_show_nothing_unless_asked_for() -> None:
    ids = BYTE_LEVEL.encode("a<|im_end|>b")
    assert pushed(BYTE_LEVEL, ids) == ["a", "", "b"]
    assert pushed(BYTE_LEVEL, ids, skip_special=False) == ["a", "<|im_end|>", "b"]


def test_a_control_token_inside_a_character_does_not_break_it() -> None:
    first, *rest = PIECES.encode_text("鑫")[1:]
    assert "".join(pushed(PIECES, [first, 2, *rest])) == "鑫"


def test_a_word_after_context_keeps_its_space_and_without_loses_it() -> None:
    word = PIECES.encode_text("fox")
    assert "".join(pushed(PIECES, word)) == "fox"
    after = PIECES.detokenizer(context=PIECES.encode("the"))
    assert "".join(map(after.push, word)) == " fox"


def test_many_tokens_without_text_do_not_make_a_text_forget_that_it_has_begun() -> None:
    detokenizer = PIECES.detokenizer()
    nothing = [10**6] * (2 * MOST_HELD + 1)
    shown = [detokenizer.push(token) for token in (*PIECES.encode_text("the"), *nothing, *PIECES.encode_text("fox"))]
    assert "".join(shown) == "the fox"


def test_context_may_end_inside_a_character() -> None:
    *context, last = PIECES.encode_text("the quick 鑫")
    assert PIECES.detokenizer(context=context).push(last) == "鑫"


@pytest.mark.parametrize("token", [3 + 0xFF, 10**6], ids=["a broken byte", "a token without text"])
def test_the_work_for_a_token_does_not_grow_with_the_text(token: int) -> None:
    longest = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return PIECES.decode(ids)

    detokenizer = Detokenizer(decode, context=[token] * 50)
    for _ in range(500):
        detokenizer.push(token)
    assert longest <= 2 * MOST_HELD
    assert CONTEXT < MOST_HELD
