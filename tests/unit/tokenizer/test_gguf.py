from __future__ import annotations

import tracemalloc
from array import array
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outpace.errors import TokenizerError
from outpace.tokenizer import Tokenizer
from tests.vocabularies import byte_level_metadata, sentencepiece_metadata


def test_a_file_without_a_pre_tokenizer_is_read_like_default_with_a_loud_warning() -> None:
    with pytest.warns(UserWarning, match=r"tokenizer\.ggml\.pre is missing.* GETS WORSE: use a newer conversion"):
        silent = Tokenizer.from_gguf(byte_level_metadata(pre=None))
    stated = Tokenizer.from_gguf(byte_level_metadata(pre=None) | {"tokenizer.ggml.pre": "default"})
    for text in ("it's a test, v1234567!?  x", "let x = 10;\n"):
        assert silent.encode_text(text) == stated.encode_text(text)


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({}, "tokenizer.ggml.tokens"),
        (byte_level_metadata(model=None), "tokenizer.ggml.model is missing"),
        (byte_level_metadata(model="bert"), "tokenizer.ggml.model is 'bert', supported: gpt2, llama"),
        (byte_level_metadata(pre="falcon"), "tokenizer.ggml.pre is 'falcon', supported: a.x-4.0, bloom, chatglm-bpe, "),
        (byte_level_metadata(pre="gpt2"), "tokenizer.ggml.pre is 'gpt2', supported: "),  # llama.cpp: "gpt-2" only
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
        (sentencepiece_metadata(scores=None), "tokenizer.ggml.scores is missing"),
        (sentencepiece_metadata(scores=[0.5]), "tokenizer.ggml.scores has 1 entries"),
        (sentencepiece_metadata(token_type=None), "tokenizer.ggml.token_type is missing"),
        (sentencepiece_metadata(scores=[float("nan")] * 560), "tokenizer.ggml.scores has "),
        (sentencepiece_metadata(tokens=None), "tokenizer.ggml.tokens is missing"),
        (byte_level_metadata(tokens=None), "tokenizer.ggml.tokens is missing"),
        (byte_level_metadata(token_type=None), "tokenizer.ggml.token_type is missing"),
        (byte_level_metadata(merges=None), "tokenizer.ggml.merges is missing"),
        (byte_level_metadata(merges=[1, 2]), "tokenizer.ggml.merges is not an array of str"),
        (byte_level_metadata(add_bos_token=True, bos_token_id=None), "tokenizer.ggml.bos_token_id is missing"),
        (byte_level_metadata("llama-bpe", bos_token_id=None), "tokenizer.ggml.bos_token_id is missing"),
        (byte_level_metadata(add_eos_token=True, eos_token_id=None), "tokenizer.ggml.eos_token_id is missing"),
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
        (byte_level_metadata("llama-bpe", add_bos_token=False, bos_token_id=None), False),
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
    metadata = byte_level_metadata()
    metadata["tokenizer.ggml.token_type"] = [1] * len(metadata["tokenizer.ggml.tokens"])
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.control_ids == {0, 1, 2}  # 0 is <|endoftext|>, known by its name
    assert tokenizer.encode("<|im_end|>") == [2]


NONE = [(1 << 32) - 1, (1 << 64) - 1, -1, len(byte_level_metadata()["tokenizer.ggml.tokens"])]


@pytest.mark.parametrize("none", NONE)
@pytest.mark.parametrize("key", ["bos", "eos", "eot", "eom", "unknown", "padding"])
def test_an_id_that_means_none_is_as_good_as_absent_with_one_warning(key: str, none: int) -> None:
    absent = Tokenizer.from_gguf(byte_level_metadata(**{f"{key}_token_id": None}))
    with pytest.warns(UserWarning, match=f"tokenizer.ggml.{key}_token_id is {none}, which means that") as caught:
        tokenizer = Tokenizer.from_gguf(byte_level_metadata(**{f"{key}_token_id": none}))
    assert len(caught) == 1
    assert tokenizer.control_ids == absent.control_ids
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (absent.bos_id, absent.eos_ids)
    assert tokenizer.encode("the fox") == absent.encode("the fox")


def test_a_sentencepiece_id_that_means_none_is_the_usual_one() -> None:
    with pytest.warns(UserWarning, match="bos_token_id is 4294967295.*so it is 1, as usual"):
        tokenizer = Tokenizer.from_gguf(sentencepiece_metadata(bos_token_id=(1 << 32) - 1))
    assert tokenizer.encode("the") == Tokenizer.from_gguf(sentencepiece_metadata()).encode("the")
    assert tokenizer.bos_id == 1


def with_token(token: str, kind: int, *more: str) -> Tokenizer:
    """Return a tokenizer without end tokens of its own, with one token of a type, and more control tokens."""
    metadata = byte_level_metadata(eos_token_id=None)
    kept = ["[ONE]" if token.startswith("<|") else token for token in metadata["tokenizer.ggml.tokens"][:4]]
    tokens = [f"{spelled}{i}" for i, spelled in enumerate(kept)] + metadata["tokenizer.ggml.tokens"][4:]
    types = [*metadata["tokenizer.ggml.token_type"], kind, *[3] * len(more)]
    changes = {"tokens": [*tokens, token, *more], "token_type": types}
    return Tokenizer.from_gguf(byte_level_metadata(eos_token_id=None, **changes))


@pytest.mark.parametrize("kind", [1, 3, 4])
@pytest.mark.parametrize(
    "name", ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>", "<end_of_turn>", "<|end|>"]
)
def test_end_tokens_are_found_by_name_however_they_are_marked(name: str, kind: int) -> None:
    tokenizer = with_token(name, kind)
    last = tokenizer.vocab_size - 1
    assert tokenizer.eos_ids == {last}
    assert last in tokenizer.control_ids
    assert tokenizer.encode(name) == [last]


@pytest.mark.parametrize("name", ["</s>", "<eos>", "[EOS]", "<EOT>"])
def test_end_tokens_that_may_be_words_of_a_text_are_found_unless_they_are_marked_as_text(name: str) -> None:
    marked = with_token(name, 3)
    assert marked.eos_ids == {marked.vocab_size - 1}
    assert with_token(name, 1).eos_ids == set()


def test_an_end_of_one_message_of_several_is_no_end() -> None:
    alone = with_token("<|end|>", 3)
    assert alone.eos_ids == {alone.vocab_size - 1}
    several = with_token("<|end|>", 3, "<|return|>", "<|call|>")
    assert several.eos_ids == {several.vocab_size - 2, several.vocab_size - 1}


def test_user_defined_tokens_are_found_in_text_but_are_no_control_tokens() -> None:
    metadata = byte_level_metadata()
    types = list(metadata["tokenizer.ggml.token_type"])
    types[4] = 4  # [INST]
    tokenizer = Tokenizer.from_gguf(metadata | {"tokenizer.ggml.token_type": types})
    assert tokenizer.encode("[INST]") == [4]
    assert 4 not in tokenizer.control_ids
    assert tokenizer.decode([4]) == "[INST]"


@pytest.mark.parametrize(
    ("name", "strips"), [("Phi-3 Mini 4k", True), ("my.PHI3", True), ("Phi 3.5", False), (7, False)]
)
def test_white_space_behind_special_tokens_goes_in_files_of_that_name(name: object, strips: bool) -> None:
    """As in llama.cpp, and as rstrip in Phi-3's own tokenizer.json."""
    plain = Tokenizer.from_gguf(byte_level_metadata())
    found = Tokenizer.from_gguf(byte_level_metadata() | {"general.name": name})
    user, end, usual = (plain.encode(token)[-1] for token in ("<|user|>", "<|im_end|>", "<|endoftext|>"))
    expected = [user, *plain.encode_text("the fox"), end] if strips else plain.encode("<|user|>\n the fox<|im_end|>\n")
    assert found.encode("<|user|>\n the fox<|im_end|>\n") == expected
    assert found.encode("<|endoftext|> the") == [usual, *plain.encode_text(" the")]


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


ALPHABET = [Tokenizer.from_gguf(byte_level_metadata()).token(i) for i in range(7, 7 + 256)]
DENSE = {
    "short tokens": [f"{i:04x}" for i in range(20_000)],
    "wide tokens": [chr(0x4E00 + i) for i in range(20_000)],
    "empty tokens": [""] * 20_000,
}


@pytest.mark.parametrize("tokens", DENSE.values(), ids=DENSE)
@pytest.mark.parametrize(("model", "kind"), [("gpt2", 1), ("llama", 1), ("gpt2", 3), ("llama", 4)])
def test_a_tokenizer_takes_memory_in_proportion_to_its_vocabulary(tokens: list[str], model: str, kind: int) -> None:
    all_tokens = [*ALPHABET, *tokens]
    metadata = byte_level_metadata(
        tokens=all_tokens,
        token_type=array("i", [kind] * len(all_tokens)),
        scores=array("f", [0.0] * len(all_tokens)),
        merges=[],
        model=model,
    )
    size = sum(16 + len(token.encode()) for token in all_tokens)  # as stored: length, type, score
    tracemalloc.start()
    try:
        Tokenizer.from_gguf(metadata)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 32 * size + (1 << 20)
