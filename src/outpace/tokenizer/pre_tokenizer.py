"""How text is cut before byte-pair merges, by the names that GGUF files use (tokenizer.ggml.pre).

Names, patterns and options are llama.cpp's, checked against `src/llama-vocab.cpp` at commit
00ad355e009e83abf98f96a6ded7193b95763681; a name that is not here is refused, never guessed. Where llama.cpp comes only
near to the tokenizer that a model was trained with, this is the latter:

    gpt-4o, tekken      llama.cpp takes letters beyond ASCII for both cases, and no combining mark for part of a word
    qwen2               llama.cpp does not normalise text (NFC)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

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


def _by_case(number: str, endings: str) -> Callable[[], pre_tokenizers.PreTokenizer]:
    """Return the pre-tokenizer of GPT-4o and of Tekken: a new word begins where a capital follows a small letter."""
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    before = r"[^\r\n\p{L}\p{N}]?"
    return _patterns(
        f"{before}{upper}*{lower}+{endings}|{before}{upper}+{lower}*{endings}|"
        + number
        + r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_GPT2, _DIGITS, _LLAMA3 = Pre(_gpt2), Pre(_digits_then_gpt2), Pre(_llama(r"\p{N}{1,3}"))

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
    **dict.fromkeys(("gpt-2", "olmo"), _GPT2),
    **dict.fromkeys(("smollm", "refact", "starcoder", "command-r"), _DIGITS),  # refact: Granite
    "qwen2": Pre(_llama(r"\p{N}"), nfc=True),
    "deepseek-r1-qwen": Pre(_llama(r"\p{N}")),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), _LLAMA3),  # OLMo 2, SmolLM3, GLM-4
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"), replace(_LLAMA3, whole_words=True, adds_bos=True)
    ),
    "gpt-4o": Pre(_by_case(r"\p{N}{1,3}", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?")),  # Phi-4 mini
    "tekken": Pre(_by_case(r"\p{N}", ""), whole_words=True, adds_bos=True),  # Mistral Nemo and later
}
