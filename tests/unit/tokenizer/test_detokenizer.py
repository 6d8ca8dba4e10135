from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

import pytest
import tokenizers
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tokenizers import decoders, models

from outpace.tokenizer import Detokenizer, Spelling, Tokenizer
from outpace.tokenizer.parts import Parts
from tests.vocabularies import byte_level_metadata, sentencepiece_metadata, texts

BYTE_LEVEL = Tokenizer.from_gguf(byte_level_metadata())
PIECES = Tokenizer.from_gguf(sentencepiece_metadata())
BOTH = pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, PIECES], ids=["byte-level", "sentencepiece"])


def pushed(tokenizer: Tokenizer, ids: Sequence[int], **options: bool) -> list[str]:
    detokenizer = tokenizer.detokenizer(**options)
    return [detokenizer.push(token) for token in ids]


def library(tokenizer: Tokenizer, ids: Sequence[int], skip: bool = True) -> str:
    """Return what the `tokenizers` library itself decodes."""
    text: str = tokenizer._backend.decode(list(ids), skip_special_tokens=skip)
    return text


@BOTH
@given(text=texts)
def test_pieces_of_a_text_make_the_text_and_no_piece_is_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode_text(text)
    shown = pushed(tokenizer, ids)
    assert "".join(shown) == tokenizer.decode(ids) == library(tokenizer, ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in shown)
    spelled = tokenizer.decode(ids, skip_special=False)
    assert "".join(tokenizer.pieces(ids)) == spelled == library(tokenizer, ids, skip=False)


@given(st.lists(st.integers(0, BYTE_LEVEL.vocab_size + 3), max_size=40), st.booleans())
@example([], True)
@example([7 + byte for byte in range(256)], True)
def test_any_tokens_at_all_show_what_the_library_decodes(ids: list[int], skip: bool) -> None:
    assert BYTE_LEVEL.decode(ids, skip_special=skip) == library(BYTE_LEVEL, ids, skip)


@BOTH
@given(data=st.data())
def test_pieces_and_finish_are_what_decode_returns(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=40))
    skip = data.draw(st.booleans())
    detokenizer = tokenizer.detokenizer(skip_special=skip)
    shown = "".join([*map(detokenizer.push, ids), detokenizer.finish()])
    assert shown == tokenizer.decode(ids, skip_special=skip)
    if not skip:
        assert "".join(tokenizer.pieces(ids)) == shown


def byte_runs(ids: Sequence[int]) -> list[bytes]:
    """Return the runs of SentencePiece byte tokens in `ids`: the library decodes each as a whole, or not at all."""
    kinds = groupby(ids, lambda i: 3 <= i < 259)
    return [bytes(i - 3 for i in run) for is_byte, run in kinds if is_byte]


def is_utf8(run: bytes) -> bool:
    return "\ufffd" not in run.decode(errors="replace")


@given(st.lists(st.integers(0, PIECES.vocab_size - 1) | st.integers(3 + 0x20, 3 + 0x7F), max_size=40))
def test_any_sentencepiece_tokens_show_what_the_library_decodes_where_their_bytes_are_utf8(ids: list[int]) -> None:
    shown = [i for i in ids if i not in PIECES.control_ids]
    assume(all(map(is_utf8, byte_runs(shown))))
    assert PIECES.decode(ids) == library(PIECES, ids)


@given(st.lists(st.integers(0, PIECES.vocab_size - 1), max_size=40))
def test_bytes_that_are_no_utf8_spoil_no_text_beside_them(ids: list[int]) -> None:
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


def test_a_broken_byte_is_one_replacement_and_its_neighbours_stay() -> None:
    ids = [3 + 0x41, 3 + 0xFF, *PIECES.encode_text("a")[1:]]
    assert library(PIECES, ids).startswith("\ufffd\ufffd")  # the library gives up on the whole run of bytes
    assert PIECES.decode(ids) == "A\ufffd" + PIECES.decode(ids[2:])


def test_half_a_character_at_the_end_is_one_replacement_once_the_text_is_finished() -> None:
    ids = PIECES.encode_text("鑫")[:3]
    detokenizer = PIECES.detokenizer()
    assert [*map(detokenizer.push, ids), detokenizer.finish()] == ["", "", "", "\ufffd"]
    assert PIECES.decode(ids) == "\ufffd"


def test_a_replacement_character_that_is_meant_is_shown_at_once() -> None:
    for tokenizer in (BYTE_LEVEL, PIECES):
        ids = tokenizer.encode_text("a\ufffd")
        assert "".join(pushed(tokenizer, ids)) == "a\ufffd"


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
    nothing = [10**6] * 40
    ids = [*PIECES.encode_text("the"), *nothing, *PIECES.encode_text("fox")]
    assert "".join(pushed(PIECES, ids)) == "the fox"
    after = PIECES.detokenizer(context=ids[:-1])
    assert after.push(PIECES.encode_text("the")[0]) == " the"


def test_context_may_end_inside_a_character_which_the_text_may_complete_or_not() -> None:
    *context, last = PIECES.encode_text("the quick 鑫")
    assert PIECES.detokenizer(context=context).push(last) == "鑫"
    other = PIECES.encode_text("the")
    assert "".join(map(PIECES.detokenizer(context=context).push, other)) == " the"
    assert PIECES.detokenizer(context=context).finish() == ""
    assert PIECES.decode(other, context=context) == " the"


def test_the_tokenizer_is_asked_once_about_a_token() -> None:
    asked = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal asked
        asked += 1
        return library(PIECES, ids, skip=False)

    spelling = Spelling(decode, PIECES.token, PIECES.vocab_size)
    detokenizer = Detokenizer(spelling)
    for token in PIECES.encode_text("the fox"):
        detokenizer.push(token)
    before = asked
    for token in PIECES.encode_text("the fox") * 500:
        detokenizer.push(token)
    assert asked == before


@pytest.mark.parametrize(
    ("decoder", "entries"),
    [
        (decoders.Metaspace(), ["<s>", "▁the", "▁", "fox", "é", "▁a"]),
        (decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
         ["<s>", "▁the", "▁", "<0xE2>", "<0x82>", "<0xAC>", "fox", "�"]),
    ],
)  # fmt: skip
@given(data=st.data())
def test_other_decoders_show_what_the_library_decodes(
    decoder: decoders.Decoder, entries: list[str], data: st.DataObject
) -> None:
    backend = tokenizers.Tokenizer(
        models.WordLevel({entry: i for i, entry in enumerate(entries)}, unk_token=entries[0])
    )
    backend.decoder = decoder
    tokenizer = Tokenizer(Parts(backend, len(entries)))
    ids = data.draw(st.lists(st.integers(0, len(entries)), max_size=12))
    spelled = "".join(entries[i] for i in ids if i < len(entries))
    assume(re.sub("<0xE2><0x82><0xAC>", "", spelled).count("<0x") == 0)
    assert tokenizer.decode(ids) == library(tokenizer, ids)
