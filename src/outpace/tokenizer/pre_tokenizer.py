"""How text is cut before byte-pair merges, by the names that GGUF files use (tokenizer.ggml.pre)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers


@dataclass(frozen=True, slots=True)
class Pre:
    """A pre-tokenizer: how text is cut before byte-pair merges, and what its models do beside it."""

    split: Callable[[], pre_tokenizers.PreTokenizer]
    nfc: bool = False  # text is normalised first
    whole_words: bool = False  # a word that is a token is not merged from its bytes
    adds_bos: bool = False  # unless the file says otherwise


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _digits_then_gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _patterns(*patterns: str) -> Callable[[], pre_tokenizers.PreTokenizer]:
    """Return what cuts text by each pattern in turn, then spells it in bytes."""
    return lambda: pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _llama(number: str) -> Callable[[], pre_tokenizers.PreTokenizer]:
    """Return the pre-tokenizer of Llama 3 and its relatives; they differ in how many digits make a word."""
    return _patterns(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + number
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


PRE: dict[str, Pre] = {
    # What llama.cpp does with the name "default": punctuation apart, then as GPT-2, then numbers in threes.
    "default": Pre(
        _patterns(
            r"[\p{P}$+<=>^~|]+",
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
            r"\p{N}+",
            r"[0-9]{3}",
        )
    ),
    "gpt-2": Pre(_gpt2),
    "gpt2": Pre(_gpt2),
    "smollm": Pre(_digits_then_gpt2),
    "qwen2": Pre(_llama(r"\p{N}"), nfc=True),
    "llama-bpe": Pre(_llama(r"\p{N}{1,3}"), whole_words=True, adds_bos=True),
}
