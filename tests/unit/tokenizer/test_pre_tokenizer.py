from __future__ import annotations

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
