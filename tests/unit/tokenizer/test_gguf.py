from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outpace.errors import TokenizerError
from outpace.tokenizer import Tokenizer
from tests.vocabularies import byte_level_metadata, sentencepiece_metadata


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({}, "tokenizer.ggml.tokens"),
        (byte_level_metadata(model=None), "tokenizer.ggml.model is missing"),
        (byte_level_metadata(model="bert"), "tokenizer.ggml.model is 'bert', supported: gpt2, llama"),
        (byte_level_metadata(pre="falcon"), "tokenizer.ggml.pre is 'falcon', supported: default, gpt-2"),
        (byte_level_metadata(pre=7), "tokenizer.ggml.pre is a int, expected a str"),
        (byte_level_metadata(tokens=[]), "tokenizer.ggml.tokens"),
        (byte_level_metadata(tokens="abc"), "tokenizer.ggml.tokens is not an array"),
        (byte_level_metadata(tokens=["a", "b", "a"], token_type=None), "'a' twice"),
        (byte_level_metadata(token_type=[1, 2]), "tokenizer.ggml.token_type has 2 entries"),
        (byte_level_metadata(merges=["a b c"]), "tokenizer.ggml.merges has 'a b c'"),
        (byte_level_metadata(merges=["nowhere tobefound"]), "cannot be built"),
        (byte_level_metadata(eos_token_id=10**6), "tokenizer.ggml.eos_token_id is 1000000"),
        (byte_level_metadata(bos_token_id=-1), "tokenizer.ggml.bos_token_id is -1"),
        (byte_level_metadata(add_bos_token="yes"), "tokenizer.ggml.add_bos_token is a str"),
        (byte_level_metadata() | {"tokenizer.chat_template": 5}, "tokenizer.chat_template is a int"),
        (sentencepiece_metadata(scores=None), "tokenizer.ggml.scores has 0 entries"),
        (sentencepiece_metadata(scores=[0.5]), "tokenizer.ggml.scores has 1 entries"),
    ],
)
def test_bad_metadata_is_refused_and_the_key_named(metadata: dict[str, object], named: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_gguf(metadata)
    assert named in str(caught.value)


_junk = st.one_of(
    st.none(), st.integers(), st.booleans(), st.text(max_size=3), st.lists(st.text(max_size=3), max_size=4)
)


@given(st.sampled_from([byte_level_metadata, sentencepiece_metadata]), st.data())
def test_junk_in_any_key_never_does_more_than_raise_a_tokenizer_error(make: object, data: st.DataObject) -> None:
    metadata = make()  # type: ignore[operator]
    metadata[data.draw(st.sampled_from(sorted(metadata)))] = data.draw(_junk)
    with suppress(TokenizerError):
        Tokenizer.from_gguf(metadata).encode("the fox 12")


@pytest.mark.parametrize(
    ("metadata", "begins_with_bos"),
    [
        (byte_level_metadata("smollm"), False),
        (byte_level_metadata("qwen2"), False),
        (byte_level_metadata("llama-bpe"), True),
        (byte_level_metadata("llama-bpe", add_bos_token=False), False),
        (byte_level_metadata("smollm", add_bos_token=True), True),
        (byte_level_metadata("smollm", add_bos_token=True, bos_token_id=None), False),
        (sentencepiece_metadata(), True),
        (sentencepiece_metadata(bos_token_id=None), True),  # its usual place
        (sentencepiece_metadata(add_bos_token=False), False),
    ],
)
def test_raw_text_begins_with_bos_where_the_model_wants_it(metadata: dict[str, object], begins_with_bos: bool) -> None:
    tokenizer = Tokenizer.from_gguf(metadata)
    assert (tokenizer.encode("the fox")[0] == 1) == begins_with_bos
    assert tokenizer.encode_text("the fox")[0] != 1


def test_a_text_that_begins_with_bos_or_ends_with_eos_gets_no_second_one() -> None:
    tokenizer = Tokenizer.from_gguf(sentencepiece_metadata(add_eos_token=True))
    assert tokenizer.encode("the") == [1, *tokenizer.encode_text("the"), 2]
    assert tokenizer.encode("<s>the</s>") == tokenizer.encode("the")
    assert tokenizer.encode("") == [1, 2]


def test_end_tokens_are_all_that_the_file_names() -> None:
    assert Tokenizer.from_gguf(byte_level_metadata(eot_token_id=0, eom_token_id=3)).eos_ids == {0, 2, 3}


def test_tokens_that_the_file_names_are_control_tokens_even_if_it_forgot_to_mark_them() -> None:
    metadata = byte_level_metadata(token_type=None)
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.control_ids == {1, 2}
    assert tokenizer.encode("<|im_end|>") == [2]


def test_user_defined_tokens_are_found_in_text_but_are_no_control_tokens() -> None:
    metadata = byte_level_metadata()
    types = list(metadata["tokenizer.ggml.token_type"])
    types[4] = 4  # [INST]
    tokenizer = Tokenizer.from_gguf(metadata | {"tokenizer.ggml.token_type": types})
    assert tokenizer.encode("[INST]") == [4]
    assert 4 not in tokenizer.control_ids
    assert tokenizer.decode([4]) == "[INST]"


def test_each_pre_tokenizer_cuts_numbers_in_its_way() -> None:
    """The vocabulary holds merges of digits, so only the pre-tokenizer keeps them apart."""

    def split(pre: str) -> list[str]:
        tokenizer = Tokenizer.from_gguf(byte_level_metadata("gpt-2") | {"tokenizer.ggml.pre": pre})
        return tokenizer.pieces(tokenizer.encode_text("1234567"))

    assert split("gpt-2") == ["1", "2", "34", "567"]
    assert split("smollm") == list("1234567")
    assert split("qwen2") == list("1234567")
    assert not {"34", "567"} & set(split("llama-bpe"))
    assert "123" in ["".join(split("llama-bpe")[:count]) for count in range(4)]


@pytest.mark.parametrize("name", ["gpt2", "gpt-2", "default"])
def test_all_names_of_the_gpt2_pre_tokenizer_mean_the_same(name: str) -> None:
    metadata = byte_level_metadata("gpt-2")
    text = "don't  split 12 words\n"
    expected = Tokenizer.from_gguf(metadata).encode(text)
    assert Tokenizer.from_gguf(metadata | {"tokenizer.ggml.pre": name}).encode(text) == expected
    metadata.pop("tokenizer.ggml.pre")
    assert Tokenizer.from_gguf(metadata).encode(text) == expected


def test_arrays_may_come_as_numpy_arrays() -> None:
    metadata = sentencepiece_metadata()
    expected = Tokenizer.from_gguf(metadata).encode("the fox")
    metadata["tokenizer.ggml.scores"] = np.array(metadata["tokenizer.ggml.scores"], np.float32)
    metadata["tokenizer.ggml.token_type"] = np.array(metadata["tokenizer.ggml.token_type"], np.int32)
    assert Tokenizer.from_gguf(metadata).encode("the fox") == expected


def test_sentencepiece_text_without_a_space_prefix_begins_as_it_is() -> None:
    with_space = Tokenizer.from_gguf(sentencepiece_metadata())
    without = Tokenizer.from_gguf(sentencepiece_metadata(add_space_prefix=False))
    assert with_space.token(with_space.encode_text("the")[0]).startswith("▁")
    assert not without.token(without.encode_text("the")[0]).startswith("▁")
    for tokenizer in (with_space, without):
        assert tokenizer.decode(tokenizer.encode_text(" the fox")) == " the fox"


def test_sentencepiece_falls_back_to_bytes() -> None:
    tokenizer = Tokenizer.from_gguf(sentencepiece_metadata())
    assert [tokenizer.token(i) for i in tokenizer.encode_text("鑫")] == ["▁", "<0xE9>", "<0x91>", "<0xAB>"]
    assert tokenizer.decode(tokenizer.encode_text("<0x41> 鑫\n")) == "<0x41> 鑫\n"


def test_sentencepiece_never_merges_text_into_a_byte_or_control_piece() -> None:
    parts = ["<", "0", "x", "4", "1", "s", ">", "<0", "<0x", "<0x4", "1>", "<s"]
    old = sentencepiece_metadata()
    tokens = list(dict.fromkeys([*old["tokenizer.ggml.tokens"], *parts]))
    new = len(tokens) - len(old["tokenizer.ggml.tokens"])
    scores = [*old["tokenizer.ggml.scores"], *[-1e3 - i for i in range(new)]]
    types = [*old["tokenizer.ggml.token_type"], *[1] * new]
    tokenizer = Tokenizer.from_gguf(
        sentencepiece_metadata(tokens=tokens, scores=scores, token_type=types)
        | {"tokenizer.chat_template": "{{ messages[0].content }}"}
    )
    for text in ("<0x41>", "<s>"):
        ids = tokenizer.encode_chat([{"role": "user", "content": text}])
        spelled = [tokenizer.token(i) for i in ids]
        assert "".join(spelled) == "▁" + text
        assert len(spelled) > 2, "merged as far as text goes, and no further"
        assert text not in spelled


def test_llama_words_that_are_tokens_need_no_merges() -> None:
    def with_word(pre: str) -> list[int]:
        metadata = byte_level_metadata(pre)
        tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
        changed = byte_level_metadata(pre, tokens=[*tokens, "Ġxyzzy"], token_type=[*types, 1])
        return Tokenizer.from_gguf(changed).encode_text(" xyzzy")

    assert len(with_word("llama-bpe")) == 1
    assert len(with_word("qwen2")) > 1


def test_several_templates_are_told_apart_by_name() -> None:
    metadata = byte_level_metadata() | {"tokenizer.chat_template.tool_use": "<|user|>{{ tools | tojson }}"}
    tokenizer = Tokenizer.from_gguf(metadata)
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.encode_chat(messages)[0] == 1
    assert tokenizer.encode_chat(messages, tools=[{"name": "f"}])[0] == 3
