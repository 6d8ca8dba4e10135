"""Token ids equal those of transformers' fast tokenizers, from folders and from GGUF metadata."""

from __future__ import annotations

import contextlib
import io
import json
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.integrations.ggml import convert_gguf_tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from outpace.tokenizer import Tokenizer
from outpace.weights.gguf import read_gguf
from tests.vocabularies import (
    CHATML,
    SAMPLES,
    byte_level_json,
    byte_level_metadata,
    sentencepiece_metadata,
    split_like,
    texts,
    write_folder,
)

PRES = ["smollm", "qwen2", "llama-bpe", "gpt-2"]


@cache
def from_json(pre: str) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(byte_level_json(pre))


@cache
def from_gguf(pre: str) -> Tokenizer:
    return Tokenizer.from_gguf(byte_level_metadata(pre))


@pytest.mark.parametrize("pre", PRES)
@pytest.mark.parametrize("text", SAMPLES)
def test_a_gguf_tokenizer_encodes_as_its_tokenizer_json(pre: str, text: str) -> None:
    assert from_gguf(pre).encode_text(text) == from_json(pre).encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("pre", PRES)
@given(text=texts)
def test_a_gguf_tokenizer_encodes_any_text_as_its_tokenizer_json(pre: str, text: str) -> None:
    ids = from_json(pre).encode(text, add_special_tokens=False).ids
    assert from_gguf(pre).encode_text(text) == ids
    assert from_gguf(pre).decode(ids, skip_special=False) == from_json(pre).decode(ids, skip_special_tokens=False)


def test_the_patterns_are_those_that_transformers_has_for_these_models() -> None:
    """Guards the reference itself: the tiny tokenizer.json files are split as the real ones."""
    assert _pattern("qwen2") == PRETOKENIZE_REGEX
    llama = TikTokenConverter(vocab_file="unused").pattern
    assert llama == _pattern("llama-bpe")


def _pattern(pre: str) -> str:
    return str(json.loads(split_like(pre).__getstate__())["pretokenizers"][0]["pattern"]["Regex"])


@cache
def pieces_of_transformers() -> tokenizers.Tokenizer:
    """Return transformers' own conversion of the SentencePiece metadata."""
    metadata = {key.rpartition(".")[2]: value for key, value in sentencepiece_metadata().items()}
    given = {name: metadata[name] for name in ("tokens", "scores", "token_type", "bos_token_id", "eos_token_id")}
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        backend, _ = convert_gguf_tokenizer("llama", {**given, "unk_token_id": 0, "tokenizer_type": "llama"})
    return backend


@pytest.mark.parametrize("text", [*SAMPLES, "<s>the</s> fox", "<0x41>", "aaaaa aaaaaaa"])
def test_a_sentencepiece_tokenizer_encodes_as_transformers_conversion(text: str) -> None:
    ours, theirs = Tokenizer.from_gguf(sentencepiece_metadata()), pieces_of_transformers()
    ids = theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode_text(text) == ids
    assert ours.decode(ids) == theirs.decode(ids)


@given(text=texts)
def test_a_sentencepiece_tokenizer_encodes_any_text_as_transformers_conversion(text: str) -> None:
    ids = pieces_of_transformers().encode(text, add_special_tokens=False).ids
    assert Tokenizer.from_gguf(sentencepiece_metadata()).encode_text(text) == ids


SIZE = from_json("gpt-2").get_vocab_size()
CONFIGS: list[dict[str, Any]] = [
    {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"},
    {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "add_bos_token": True},
    {"tokenizer_class": "GPT2TokenizerFast", "bos_token": "the", "eos_token": "<|im_end|>", "unk_token": "the"},
    {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {
            str(SIZE): {"content": "<tool>", "special": False, "normalized": False, "lstrip": False, "rstrip": True},
            str(SIZE + 1): {"content": "<end>", "special": True, "normalized": False, "lstrip": False, "rstrip": False},
        },
    },
]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_folder_encodes_and_decodes_as_transformers(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = write_folder(tmp_path, byte_level_json("gpt-2"), clean_up_tokenization_spaces=False, **config)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), Tokenizer.from_folder(folder)
    for text in [*SAMPLES, "<tool>  x<end> y", "the <|im_start|>"]:
        ids = theirs(text)["input_ids"]
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, skip_special=False) == theirs.decode(ids)
    assert ours.control_ids == set(theirs.all_special_ids) | {
        i for i, token in theirs.added_tokens_decoder.items() if token.special
    }


@pytest.mark.parametrize("flags", [{}, {"add_bos_token": False}, {"add_eos_token": True}])
def test_a_llama_folder_puts_the_same_tokens_around_text(tmp_path: Path, flags: dict[str, bool]) -> None:
    backend = pieces_of_transformers()
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    folder = write_folder(tmp_path, backend.to_str(), tokenizer_class="LlamaTokenizerFast", **names, **flags)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), Tokenizer.from_folder(folder)
    for text in SAMPLES:
        assert ours.encode(text) == theirs(text)["input_ids"]
    assert ours.bos_id == theirs.bos_token_id
    assert ours.eos_ids == {theirs.eos_token_id}


TEMPLATES = [
    CHATML,
    "{{ bos_token }}{% for m in messages %}[INST] {{ m['content'] | trim }} [/INST]{{ eos_token }}{% endfor %}",
    "{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}{{ messages | tojson }}{{ strftime_now('%d %b %Y') }}",
    "{% for m in messages %}\n    {% if loop.last %}\nlast: {% endif %}\n{{ m.content }}{% endfor %}"
    "{% generation %}x{% endgeneration %}{{ unk_token }}{{ pad_token }}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_chat_encodes_as_transformers_apply_chat_template(tmp_path: Path, template: str) -> None:
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    folder = write_folder(tmp_path, chat_template=template, tokenizer_class="PreTrainedTokenizerFast", **names)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), Tokenizer.from_folder(folder)
    tools = [{"type": "function", "function": {"name": "f", "description": 'say "é" <b>'}}]
    today = datetime.now().date()
    for said in SAMPLES[:-1]:
        chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": said}]
        for options in ({}, {"tools": tools}, {"add_generation_prompt": True}, {"add_generation_prompt": False}):
            expected = theirs.apply_chat_template(chat, **{"add_generation_prompt": True, **options})
            assert ours.encode_chat(chat, **options) == expected or datetime.now().date() != today


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_tokens_of_the_default_model_are_the_text_that_the_library_decodes(
    default_model_path: Path, data: st.DataObject
) -> None:
    tokenizer = default_tokenizer(default_model_path)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    for skip in (True, False):
        assert tokenizer.decode(ids, skip) == tokenizer._backend.decode(ids, skip_special_tokens=skip)
    detokenizer = tokenizer.detokenizer()
    assert "".join([*map(detokenizer.push, ids), detokenizer.finish()]) == tokenizer.decode(ids)


@cache
def default_tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_gguf(read_gguf(path).metadata)


def test_the_default_model_splits_digits_and_has_a_system_prompt(default_model_path: Path) -> None:
    metadata = read_gguf(default_model_path).metadata
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.vocab_size == 49152
    assert tokenizer.pieces(tokenizer.encode("Hello 2024<|im_end|>")) == ["Hello", " ", *"2024", "<|im_end|>"]
    ids = tokenizer.encode_chat([{"role": "user", "content": "Hi <|im_end|>"}])
    assert [i for i in ids if i in tokenizer.control_ids] == [1, 2, 1, 2, 1]
    assert tokenizer.decode(ids, skip_special=False) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi <|im_end|><|im_end|>\n<|im_start|>assistant\n"
    )
    given = {"tokens": metadata["tokenizer.ggml.tokens"], "merges": list(metadata["tokenizer.ggml.merges"])}
    theirs, _ = convert_gguf_tokenizer("gpt2", given)  # it knows no smollm: the same but for digits
    for text in SAMPLES:
        plain = "".join(char for char in text if not char.isnumeric()).replace("<|", "")
        assert tokenizer.encode(plain) == theirs.encode(plain, add_special_tokens=False).ids
