from __future__ import annotations

import inspect
import re

import pytest
from tokenizers import Regex, pre_tokenizers

from outpace.tokenizer import Tokenizer
from outpace.tokenizer.pre_tokenizer import PRE
from tests.vocabularies import byte_level_metadata


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


def test_both_names_of_the_gpt2_pre_tokenizer_mean_the_same() -> None:
    metadata = byte_level_metadata("gpt-2")
    text = "don't  split 12 words\n"
    expected = Tokenizer.from_gguf(metadata).encode(text)
    assert Tokenizer.from_gguf(metadata | {"tokenizer.ggml.pre": "gpt2"}).encode(text) == expected


def test_the_default_pre_tokenizer_is_that_of_llama_cpp() -> None:
    """Punctuation stands alone, numbers are cut in threes from the left; spelled in bytes."""
    cut = PRE["default"].split().pre_tokenize_str
    assert [word for word, _ in cut("it's a test, v1234567!?  x")] == [
        *("it", "'", "s", "Ġa", "Ġtest", ",", "Ġv", "123", "456", "7", "!?", "Ġ", "Ġx")
    ]


def cut(pre: str, text: str) -> list[str]:
    return [word.replace("Ġ", " ").replace("Ċ", "\n") for word, _ in PRE[pre].split().pre_tokenize_str(text)]


TEXT = "HelloWorld's iPhone it'S 12345 a/b//\n x  y"


def test_each_family_cuts_words_numbers_and_endings_in_its_way() -> None:
    assert cut("gpt-4o", TEXT) == [
        *("Hello", "World's", " i", "Phone", " it'S", " ", "123", "45", " a", "/b", "//\n", " x", " ", " y")
    ]
    assert cut("tekken", TEXT) == [
        *("Hello", "World", "'s", " i", "Phone", " it", "'S", " ", *"12345", " a", "/b", "//\n", " x", " ", " y")
    ]
    assert cut("llama-bpe", TEXT) == [
        *("HelloWorld", "'s", " iPhone", " it", "'S", " ", "123", "45", " a", "/b", "//\n", " x", " ", " y")
    ]
    assert cut("qwen2", TEXT) == cut("deepseek-r1-qwen", TEXT)
    assert cut("refact", "a 12345") == cut("smollm", "a 12345") == ["a", " ", *"12345"]


def test_families_of_one_pattern_differ_in_whole_words_and_beginnings() -> None:
    for name in ("dbrx", "smaug-bpe", "chatglm-bpe", "glm4", "llama3", "llama-v3", "falcon3", "pixtral"):
        assert cut(name, TEXT) == cut("llama-bpe", TEXT)
    for name in ("dbrx", "smaug-bpe", "chatglm-bpe"):
        assert not PRE[name].whole_words
        assert not PRE[name].adds_bos
    for name in ("llama-bpe", "llama3", "falcon3", "tekken"):
        assert PRE[name].whole_words
        assert PRE[name].adds_bos


def test_tekken_is_the_pattern_that_transformers_has_for_it() -> None:
    source = inspect.getsource(pytest.importorskip("transformers.tokenization_utils_base"))
    (pattern,) = re.findall(r'Regex\(\s*r"(\[\^.*)"', source)
    theirs = pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str
    for text in (
        TEXT,
        "ÉcoleNormale élève ДомКнига 日本語テキスト 12٣ __init__.py\r\n\r\n  end ",
        "ǅungla aB Ab AB ab",
    ):
        spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
        expected = ["".join(piece for piece, _ in spelled(word)) for word, _ in theirs(text)]
        assert [word for word, _ in PRE["tekken"].split().pre_tokenize_str(text)] == expected
