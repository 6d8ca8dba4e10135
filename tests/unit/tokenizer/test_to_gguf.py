from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from outpace.errors import TokenizerError
from outpace.tokenizer import Tokenizer
from outpace.tokenizer.gguf import gguf_parts
from outpace.tokenizer.pre_tokenizer import PRE
from outpace.tokenizer.to_gguf import gguf_tokenizer
from tests.vocabularies import CHATML, SAMPLES, byte_level_json, sentencepiece_metadata, write_folder

HI = [{"role": "user", "content": "hi <there>"}]


def backend_of(folder: Path) -> Backend:
    return Backend.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("pre", ["smollm", "qwen2", "llama-bpe", "gpt-2"])
def test_byte_level_tokenizers_come_back_the_same(tmp_path: Path, pre: str) -> None:
    folder = write_folder(tmp_path, byte_level_json(pre), chat_template=CHATML, eos_token="<|im_end|>")
    entries = gguf_tokenizer(folder, 500, "tiny")
    assert entries["tokenizer.ggml.pre"] == pre
    assert len(entries["tokenizer.ggml.tokens"]) == 500
    own, read = Tokenizer.from_folder(folder), Tokenizer.from_gguf(entries)
    assert [read.encode(text) for text in SAMPLES] == [own.encode(text) for text in SAMPLES]
    assert read.encode_chat(HI) == own.encode_chat(HI)
    assert read.eos_ids == own.eos_ids | {0}  # <|endoftext|> is known by its text


def test_sentencepiece_tokenizers_come_back_the_same(tmp_path: Path) -> None:
    described = gguf_parts(sentencepiece_metadata()).backend.to_str()
    folder = write_folder(tmp_path, described, unk_token="<unk>")
    entries = gguf_tokenizer(folder, 600, "tiny")
    assert entries["tokenizer.ggml.model"] == "llama"
    own, read = Tokenizer.from_folder(folder), Tokenizer.from_gguf(entries)
    assert [read.encode(text) for text in SAMPLES] == [own.encode(text) for text in SAMPLES]


def test_tokens_that_strip_what_is_behind_them_can_be_said_of_phi_3_alone(tmp_path: Path) -> None:
    named = sentencepiece_metadata() | {"general.name": "Phi-3-mini"}
    folder = write_folder(tmp_path, gguf_parts(named).backend.to_str(), unk_token="<unk>")
    entries = gguf_tokenizer(folder, 600, "Phi-3-mini")
    text = "the fox</s> \n jumps"
    own = Tokenizer.from_folder(folder)
    assert Tokenizer.from_gguf(entries | {"general.name": "Phi-3-mini"}).encode(text) == own.encode(text)
    assert Tokenizer.from_gguf(entries).encode(text) != own.encode(text)
    with pytest.raises(TokenizerError, match="read back"):
        gguf_tokenizer(folder, 600, "another")


@pytest.mark.parametrize("name", PRE)
def test_each_pre_tokenizer_is_found_by_what_it_does(tmp_path: Path, name: str) -> None:
    described = json.loads(byte_level_json())
    described["normalizer"] = {"type": "NFC"} if PRE[name].nfc else None
    described["model"]["ignore_merges"] = PRE[name].whole_words
    backend = Backend.from_str(json.dumps(described))
    backend.pre_tokenizer = PRE[name].split()
    found = PRE[gguf_tokenizer(write_folder(tmp_path, backend.to_str()), 500, "tiny")["tokenizer.ggml.pre"]]
    assert found.split().__getstate__() == PRE[name].split().__getstate__()
    assert (found.nfc, found.whole_words) == (PRE[name].nfc, PRE[name].whole_words)


def test_tokens_around_raw_text_are_named(tmp_path: Path) -> None:
    backend = Backend.from_str(byte_level_json())
    backend.post_processor = processors.TemplateProcessing("<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    entries = gguf_tokenizer(write_folder(tmp_path, backend.to_str()), 500, "tiny")
    assert entries["tokenizer.ggml.add_bos_token"] is True
    assert entries["tokenizer.ggml.bos_token_id"] == 1
    assert entries["tokenizer.ggml.add_eos_token"] is False


def test_two_tokens_before_raw_text_are_one_too_many(tmp_path: Path) -> None:
    backend = Backend.from_str(byte_level_json())
    both = [("<|im_start|>", 1), ("<|user|>", 3)]
    backend.post_processor = processors.TemplateProcessing("<|im_start|> <|user|> $A", special_tokens=both)
    with pytest.warns(UserWarning, match=r"raw texts have the tokens \[1, 3\] around them"):
        gguf_tokenizer(write_folder(tmp_path, backend.to_str()), 500, "tiny")


def test_what_a_file_cannot_say_is_refused(tmp_path: Path) -> None:
    words = Backend(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    with pytest.raises(TokenizerError, match="its model is WordLevel"):
        gguf_tokenizer(write_folder(tmp_path, words.to_str()), 10, "tiny")
    backend = Backend.from_str(byte_level_json())
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel()])
    with pytest.raises(TokenizerError, match=r"no pre-tokenizer of .*smollm.* cuts text as it does"):
        gguf_tokenizer(write_folder(tmp_path, backend.to_str()), 500, "tiny")


def test_a_token_beyond_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="the model only 100 tokens"):
        gguf_tokenizer(write_folder(tmp_path, byte_level_json()), 100, "tiny")
