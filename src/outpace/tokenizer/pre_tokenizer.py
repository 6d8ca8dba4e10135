"""How text is cut before byte-pair merges, by the names that GGUF files use (tokenizer.ggml.pre).

Names, patterns and options are llama.cpp's, checked against `src/llama-vocab.cpp` at commit
00ad355e009e83abf98f96a6ded7193b95763681; a name that is not here is refused, never guessed. Of its list are missing
those of models that write no text or that are spelled otherwise (embeddings, `gemma4`, `kimi-k2`, `afmoe`), and some of
networks that do not load. Where llama.cpp comes only
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


_CASED = (  # letters of two cases, as DeepSeek lists them
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481"
    "\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b"
    "\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b"
    "\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    "\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    "\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943"
)
_CHINESE = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_HAN_AND_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_FULL_WIDTH_MARKS = "\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002"
_ANY_WORDS = r" ?[^(\s|.,!?" + "\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"

_GPT2, _DIGITS = Pre(_gpt2), Pre(_digits_then_gpt2)
_QWEN, _LLAMA3 = Pre(_llama(r"\p{N}")), Pre(_llama(r"\p{N}{1,3}"))
_GPT4O = Pre(_by_case(r"\p{N}{1,3}", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"))

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
    **dict.fromkeys(
        ("gpt-2", "olmo", "phi-2", "mpt", "jais", "trillion", "exaone4", "a.x-4.0", "mellum", "gigachat"), _GPT2
    ),
    "granite-docling": _GPT2,
    **dict.fromkeys(("smollm", "refact", "starcoder", "command-r"), _DIGITS),  # refact: Granite
    **dict.fromkeys(("codeshell", "exaone", "minerva-7b", "mellum2"), _DIGITS),
    "qwen2": replace(_QWEN, nfc=True),
    **dict.fromkeys(("deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan"), _QWEN),
    **dict.fromkeys(("solar-open", "grok-2"), _QWEN),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), _LLAMA3),  # OLMo 2, SmolLM3, GLM-4
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        replace(_LLAMA3, whole_words=True, adds_bos=True),
    ),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "minimax-m2", "talkie"), _GPT4O),  # Phi-4 mini
    "tekken": Pre(_by_case(r"\p{N}", ""), whole_words=True, adds_bos=True),  # Mistral Nemo and later
    "deepseek-llm": Pre(
        _patterns(r"[\r\n]", rf"\s?[{_CASED}]+", rf"\s?[!-/:-~{_FULL_WIDTH_MARKS}]+", r"\s+$", _CHINESE, r"\p{N}+")
    ),
    "deepseek-coder": Pre(_patterns(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CHINESE, r"\p{N}")),
    **dict.fromkeys(
        ("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"),
        Pre(
            _patterns(
                r"\p{N}{1,3}",
                _HAN_AND_KANA,
                r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
                r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            )
        ),
    ),
    "seed-coder": Pre(
        _patterns(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|"
            r"\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    ),
    **dict.fromkeys(("poro-chat", "bloom", "gpt3-finnish"), Pre(_patterns(_ANY_WORDS))),
    "viking": Pre(_patterns(_ANY_WORDS, r"\p{N}")),
}
