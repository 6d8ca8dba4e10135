from __future__ import annotations

import inspect
import re

import pytest
from tokenizers import Regex, decoders, pre_tokenizers

from outpace.tokenizer import Tokenizer
from outpace.tokenizer.pre_tokenizer import PRE
from tests.vocabularies import byte_level_metadata

TEXT = "HelloWorld's iPhone it'S 12345 a/b//\n x  y"
WIDE = TEXT + " .z\u6f22"


def cut(pre: str, text: str) -> list[str]:
    return [spelled(word) for word, _ in PRE[pre].split().pre_tokenize_str(text)]


def spelled(word: str) -> str:
    """Return the text of a word whose bytes are spelled as letters."""
    return decoders.ByteLevel().decode([word])


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


# What llama.cpp says of each name: the name of the first with its pattern, whether a word that is a token is not
# merged, whether BOS stands before raw text where the file is silent.
LLAMA_CPP = {
    "default": ("default", False, False),
    "gpt-2": ("gpt-2", False, False),
    **dict.fromkeys(("olmo", "phi-2", "mpt", "jais", "trillion", "exaone4"), ("gpt-2", False, False)),
    **dict.fromkeys(("a.x-4.0", "mellum", "gigachat", "granite-docling"), ("gpt-2", False, False)),
    "smollm": ("smollm", False, False),
    "refact": ("smollm", False, False),
    "starcoder": ("smollm", False, False),
    "command-r": ("smollm", False, False),
    **dict.fromkeys(("codeshell", "exaone", "minerva-7b", "mellum2"), ("smollm", False, False)),
    "qwen2": ("qwen2", False, False),
    **dict.fromkeys(("deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2"), ("qwen2", False, False)),
    **dict.fromkeys(("hunyuan", "solar-open", "grok-2"), ("qwen2", False, False)),
    "llama-bpe": ("llama-bpe", True, True),
    "llama3": ("llama-bpe", True, True),
    "llama-v3": ("llama-bpe", True, True),
    **dict.fromkeys(("falcon3", "falcon-h1", "midm-2.0", "lfm2"), ("llama-bpe", True, True)),
    "pixtral": ("llama-bpe", True, True),
    "dbrx": ("llama-bpe", False, False),
    "smaug-bpe": ("llama-bpe", False, False),
    "chatglm-bpe": ("llama-bpe", False, False),
    "glm4": ("llama-bpe", False, False),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "minimax-m2", "talkie"), ("gpt-4o", False, False)),
    "tekken": ("tekken", True, True),
    "deepseek-llm": ("deepseek-llm", False, False),
    "deepseek-coder": ("deepseek-coder", False, False),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), ("deepseek-v3", False, False)),
    "seed-coder": ("seed-coder", False, False),
    **dict.fromkeys(("poro-chat", "bloom", "gpt3-finnish"), ("poro-chat", False, False)),
    "viking": ("viking", False, False),
}
FIRST = list(dict.fromkeys(pattern for pattern, *_ in LLAMA_CPP.values()))


def test_no_name_is_known_but_those_that_were_checked() -> None:
    assert PRE.keys() == LLAMA_CPP.keys()


@pytest.mark.parametrize("name", LLAMA_CPP)
def test_each_name_means_what_it_means_to_llama_cpp(name: str) -> None:
    pattern, whole_words, adds_bos = LLAMA_CPP[name]
    assert [first for first in FIRST if cut(first, WIDE) == cut(name, WIDE)] == [pattern]
    assert (PRE[name].whole_words, PRE[name].adds_bos) == (whole_words, adds_bos)


def test_only_qwen2_normalises_which_llama_cpp_does_not() -> None:
    assert [name for name in PRE if PRE[name].nfc] == ["qwen2"]


def test_the_default_pre_tokenizer_is_that_of_llama_cpp() -> None:
    """Punctuation stands alone, numbers are cut in threes from the left; spelled in bytes."""
    cut = PRE["default"].split().pre_tokenize_str
    assert [word for word, _ in cut("it's a test, v1234567!?  x")] == [
        *("it", "'", "s", "Ġa", "Ġtest", ",", "Ġv", "123", "456", "7", "!?", "Ġ", "Ġx")
    ]


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


def test_deepseek_s_cut_letters_marks_and_chinese_apart() -> None:
    text = "let Straße=\u6f22\u5b57x2024; \u10d0b!\n"
    begin, georgian = ("let", " Straße", "=", "\u6f22\u5b57", "x"), (" ", "\u10d0", "b")
    assert cut("deepseek-coder", text) == [*begin, *"2024", ";", *georgian, "!", "\n"]
    # Its marks are `!-/` and `:-~`, and the latter has the letters of ASCII too: others are cut off from them.
    assert cut("deepseek-llm", text) == [
        *("let", " Stra", "ß", "e", "=", "\u6f22\u5b57", "x", "2024", ";", *georgian, "!", "\n")
    ]
    assert cut("deepseek-v3", text) == [*begin, "202", "4", ";", " \u10d0b", "!\n"]
    assert cut("deepseek-llm", "\u00e9\u0561") == ["\u00e9", "\u0561"]  # Armenian's small letters are not listed
    assert cut("deepseek-coder", "\u00e9\u0561") == ["\u00e9\u0561"]


def test_others_cut_in_ways_of_their_own() -> None:
    assert cut("seed-coder", "a = 12;\n b") == ["a", " =", " ", "1", "2", ";", "\n", " b"]
    assert cut("poro-chat", "on 12, x\u3002y") == ["on", " 12", ",", " x", "\u3002", "y"]
    assert cut("viking", "on 12, x\u3002y") == ["on", " ", "1", "2", ",", " x", "\u3002", "y"]


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
