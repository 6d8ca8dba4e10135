"""What a source says of a tokenizer is what the tokenizer does."""

from __future__ import annotations

from typing import Any

import pytest
import tokenizers

from outpace.errors import TokenizerError
from outpace.tokenizer import Tokenizer
from outpace.tokenizer.parts import Parts
from tests.vocabularies import CHATML, byte_level_json


def tokenizer(**parts: Any) -> Tokenizer:
    backend = tokenizers.Tokenizer.from_str(byte_level_json())
    return Tokenizer(Parts(**{"backend": backend, "size": backend.get_vocab_size(), **parts}))


def test_what_a_source_leaves_out_is_nothing() -> None:
    plain = tokenizer()
    assert (plain.bos_id, plain.eos_ids) == (None, frozenset())
    assert plain.decode(plain.encode("hi there"), skip_special=False) == "hi there"
    with pytest.raises(TokenizerError, match="no default chat template"):
        plain.encode_chat([{"role": "user", "content": "hi"}])


def test_raw_text_stands_between_prefix_and_suffix_and_a_chat_does_not() -> None:
    plain, around = (
        tokenizer(templates={"default": CHATML}),
        tokenizer(prefix=(1, 2), suffix=(3,), templates={"default": CHATML}),
    )
    assert around.encode("hi") == [1, 2, *plain.encode("hi"), 3]
    chat = [{"role": "user", "content": "hi"}]
    assert around.encode_chat(chat) == plain.encode_chat(chat)


def test_templates_see_the_named_tokens_and_are_chosen_by_name() -> None:
    templates = {"default": "{{ bos_token }}plain", "tool_use": "{{ bos_token }}tools"}
    named = tokenizer(named={"bos_token": "<|im_start|>"}, templates=templates)
    chat = [{"role": "user", "content": "hi"}]
    assert named.decode(named.encode_chat(chat), skip_special=False) == "<|im_start|>plain"
    assert named.decode(named.encode_chat(chat, tools=[]), skip_special=False) == "<|im_start|>tools"


def test_unused_ids_do_not_make_another_vocabulary() -> None:
    size = tokenizer().vocab_size
    assert tokenizer(unused=frozenset({size - 1})).same_vocabulary(tokenizer(size=size - 1))
    assert not tokenizer().same_vocabulary(tokenizer(size=size - 1))
