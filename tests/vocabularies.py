"""Tiny tokenizers, trained on the spot: byte-level BPE and SentencePiece-like BPE, as a folder and as GGUF metadata."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|user|>", "[INST]", "<<", "<a b>"]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "the quick brown fox jumps over the lazy dog, don't you think? I'll say: it's 12 or 1234567!",
    "def f(x):\n    return x + 1  # comment\n\n\n\tindented  twice",
    "Grüße aus Köln, naïve café, 日本語のテキスト, Привет мир, مرحبا 👩‍👩‍👧 🇩🇪 e\u0301",
    "user assistant system im_end im_start <| |> aaaa aaa aa",
] * 8
SAMPLES = [
    "",
    " ",
    "Hello, world!",
    "I'LL don't WE'VE it's",
    "12345 1 22 333 4444 x1y2 ٣٤٥ ½",
    "  two  spaces   three    four \n\n new\r\nline\t\ttab \n",
    "日本語 Привет مرحبا Grüße naïve cafe\u0301 Å\u212b",
    "👩‍👩‍👧 🇩🇪 👍🏽 \u200b\ufeff",
    "def f(x):\n    if x != 0:\n        return {'a': [1, 2]}\n",
    "<|im_start|>user\nhi<|im_end|> <|im_end| >",
]

# Any text that is valid Unicode, with a liking for what tokenizers stumble over.
texts = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=("Cs",)), max_size=8),
        st.sampled_from(["the", " fox", "'ll", "12", "\n\n", "   ", "é", "e\u0301", "👩‍👩‍👧", "日本", *CONTROLS]),
    ),
    max_size=8,
).map("".join)


@cache
def split_like(pre: str) -> pre_tokenizers.PreTokenizer:
    """Return a pre-tokenizer as the models' own tokenizer.json files have it."""
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if pre in ("qwen2", "llama-bpe"):
        pattern = tokenizers.Regex(words % ("" if pre == "qwen2" else "{1,3}"))
        return pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, "isolated"), byte_level])
    steps = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if pre == "smollm":
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    return pre_tokenizers.Sequence(steps)


@cache
def byte_level_json(pre: str = "smollm") -> str:
    """Train a tiny byte-level BPE and return its tokenizer.json."""
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = split_like(pre)
    backend.decoder = decoders.ByteLevel()
    controls = [AddedToken(token, normalized=False, special=True) for token in CONTROLS]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=controls, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend.to_str()


def byte_level_metadata(pre: str = "smollm", **changes: Any) -> dict[str, Any]:
    """Return the same tokenizer as GGUF metadata; `changes` are keys below tokenizer.ggml, None takes one away."""
    model = json.loads(byte_level_json(pre))["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    values = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "merges": [" ".join(pair) for pair in model["merges"]],
        "token_type": [3 if token in CONTROLS else 1 for token in tokens],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    metadata = {f"tokenizer.ggml.{key}": value for key, value in (values | changes).items() if value is not None}
    return metadata | {"tokenizer.chat_template": CHATML}


@cache
def _pieces() -> tuple[list[str], list[float], list[int]]:
    specials = ["<unk>", "<s>", "</s>"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=560, special_tokens=specials + bytes_, show_progress=False)
    backend.train_from_iterator([text.replace("\n", " ") for text in CORPUS], trainer)
    vocab = backend.get_vocab()
    tokens = sorted(vocab, key=vocab.__getitem__)
    learnt = len(tokens) - 259
    return tokens, [0.0] * 259 + [-float(i) for i in range(learnt)], [2, 3, 3] + [6] * 256 + [1] * learnt


def sentencepiece_metadata(**changes: Any) -> dict[str, Any]:
    """Return a tiny SentencePiece tokenizer with byte fallback as GGUF metadata."""
    tokens, scores, types = _pieces()
    values = {
        "model": "llama",
        "pre": "default",
        "tokens": list(tokens),
        "scores": list(scores),
        "token_type": list(types),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (values | changes).items() if value is not None}


def write_folder(folder: Path, tokenizer_json: str | None = None, **config: Any) -> Path:
    """Write tokenizer.json and tokenizer_config.json, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer_json or byte_level_json(), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
