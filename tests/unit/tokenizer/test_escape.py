"""What people write in a chat never becomes a control token."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, pre_tokenizers

from outpace.tokenizer import Tokenizer
from outpace.tokenizer.escape import PRIVATE, ControlTexts
from tests.vocabularies import (
    CHATML,
    CONTROLS,
    byte_level_json,
    byte_level_metadata,
    sentencepiece_metadata,
    write_folder,
)

# Contents stand beside each other, beside parts of control tokens, and are stripped.
TEMPLATES = {
    "chatml": CHATML,
    "joined": "<|im_start|>{% for m in messages %}{{ m.content }}{% endfor %}<|im_end|>",
    "stripped": "{% for m in messages %}<|im_start|>{{ m.content|trim }}{{ m.content.strip() }}<|im_end|>{% endfor %}",
    "torn": "{% for m in messages %}<|im_{{ m.content }}end|><{{ m.content|trim }}<[INST]{{ m.content }}|>{% endfor %}",
    "by role": "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}",
    "json": "{% for m in messages %}<|im_start|>{{ m | tojson }}<|im_end|>{% endfor %}",
}
fragments = st.sampled_from(
    [
        piece
        for token in CONTROLS
        for piece in (token, token[:1], token[1:], token[:-1], token[-1:], token[2:5], token[:5])
    ]
    + ["</s>", "<s>", "[INST", "/", " ", "\n", "hello", "<", "é", chr(PRIVATE[0]), chr(PRIVATE[1])]
)
contents = st.lists(fragments, max_size=7).map("".join)


@cache
def tokenizer_with(template: str, kind: str = "byte-level") -> Tokenizer:
    metadata = byte_level_metadata() if kind == "byte-level" else sentencepiece_metadata()
    return Tokenizer.from_gguf(metadata | {"tokenizer.chat_template": TEMPLATES[template]})


def controls(tokenizer: Tokenizer, said: list[str], role: str = "user") -> Counter[int]:
    ids = tokenizer.encode_chat([{"role": role, "content": text} for text in said])
    return Counter(i for i in ids if i in tokenizer.control_ids)


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
@pytest.mark.parametrize("template", TEMPLATES)
@given(said=st.lists(contents, min_size=1, max_size=3))
@example(said=["<|im_end|>"])
@example(said=["<|im_", "end|>"])
@example(said=["<", "<"])
@example(said=["<<<<"])
@example(said=["end|>"])
@example(said=["<|im_ "])
@example(said=["im_end"])
def test_the_control_tokens_of_a_chat_do_not_depend_on_what_is_said(template: str, kind: str, said: list[str]) -> None:
    tokenizer = tokenizer_with(template, kind)
    harmless = ["hello" if text.strip() else text for text in said]  # around nothing, a template may join its own parts
    assert controls(tokenizer, said) == controls(tokenizer, harmless)


@given(said=st.lists(contents, min_size=1, max_size=3))
def test_the_text_of_a_chat_is_not_changed(said: list[str]) -> None:
    tokenizer = tokenizer_with("chatml")
    ids = tokenizer.encode_chat([{"role": "user", "content": text} for text in said])
    turns = "".join(f"<|im_start|>user\n{text}<|im_end|>\n" for text in said)
    assert tokenizer.decode(ids, skip_special=False) == f"{turns}<|im_start|>assistant\n"


def test_without_escaping_contents_would_become_control_tokens() -> None:
    """The control: raw text with the same characters is not safe, so the property above can fail."""
    tokenizer = tokenizer_with("chatml")
    assert 2 in tokenizer.encode("<|im_end|>")


@pytest.mark.parametrize("token", CONTROLS)
def test_a_role_with_a_control_token_in_it_does_not_become_one(token: str) -> None:
    tokenizer = tokenizer_with("chatml")
    assert controls(tokenizer, ["hi"], role=f"user{token}") == controls(tokenizer, ["hi"])


def test_a_template_may_build_control_tokens_from_roles() -> None:
    tokenizer = tokenizer_with("by role")
    assert tokenizer.encode_chat([{"role": "user", "content": "<|user|>"}])[0] == 3
    assert controls(tokenizer, ["<|user|>"]) == {3: 1}


def test_tools_keys_and_variables_are_no_control_tokens_either() -> None:
    template = "{{ tools | tojson }}{{ extra }}{{ messages[0] | tojson }}"
    tokenizer = Tokenizer.from_gguf(byte_level_metadata() | {"tokenizer.chat_template": template})
    tools: list[Any] = [{"<|im_end|>": ("[INST]", {"description": "<|user|>"})}]
    ids = tokenizer.encode_chat([{"role": "user", "content": "x", "<<": 1}], tools=tools, extra="<|im_start|>")
    assert not tokenizer.control_ids & set(ids)
    assert tokenizer.decode(ids).startswith('[{"<|im_end|>": ["[INST]", {"description": "<|user|>"}]}]<|im_start|>')


def _folder(path: Path, controls_strip: bool, metaspace: bool) -> Tokenizer:
    """Make a tokenizer whose pieces depend on where they stand."""
    backend = tokenizers.Tokenizer.from_str(byte_level_json())
    if metaspace:
        backend.pre_tokenizer = pre_tokenizers.Metaspace("Ġ", prepend_scheme="first")
        backend.decoder = decoders.Metaspace("Ġ", prepend_scheme="first")
    text = backend.to_str()
    if controls_strip:
        text = text.replace('"lstrip":false,"rstrip":false', '"lstrip":true,"rstrip":true')
        assert '"rstrip":true' in text
    return Tokenizer.from_folder(write_folder(path, text, chat_template=CHATML))


@pytest.mark.parametrize("metaspace", [False, True])
@pytest.mark.parametrize("controls_strip", [False, True])
def test_what_is_not_dangerous_is_encoded_as_in_a_harmless_chat(
    tmp_path: Path, controls_strip: bool, metaspace: bool
) -> None:
    tokenizer = _folder(tmp_path, controls_strip, metaspace)
    harmless = [{"role": "user", "content": text} for text in ("the fox 12", "  lazy dog ", "naïve\n\n café")]
    expected = tokenizer.encode_chat(harmless, add_generation_prompt=False)
    ids = tokenizer.encode_chat([*harmless, {"role": "user", "content": "a<|im_end|>"}], add_generation_prompt=False)
    last = next(i for i in range(len(expected) - 1, 0, -1) if expected[i] in tokenizer.control_ids)
    assert ids[: last + 1] == expected[: last + 1]
    assert Counter(ids)[2] == 4


def test_private_characters_in_a_chat_stay_what_they_are() -> None:
    tokenizer = tokenizer_with("chatml")
    text = "".join(map(chr, PRIVATE[:9])) + "<|im_end|>"
    ids = tokenizer.encode_chat([{"role": "user", "content": text}], add_generation_prompt=False)
    assert tokenizer.decode(ids, skip_special=False) == f"<|im_start|>user\n{text}<|im_end|>\n"


def test_only_dangerous_places_are_found() -> None:
    danger = ControlTexts(["<|end|>", "<<", "."])
    assert danger.places("a <|end|> b", joins=True) == {2}
    assert danger.places("x<<<y", joins=True) == {1, 2}
    assert danger.places("plain text <| with |> pieces", joins=True) == set()
    assert danger.places(" at its end <|en\n", joins=True) == {12 + 3}
    assert danger.places("nd|> at its beginning", joins=True) == {0}
    assert danger.places("end", joins=True) == {0, 2}
    assert danger.places("end", joins=False) == set()
    assert danger.places("full stop.", joins=False) == {9}
    assert danger.places("", joins=True) == set()
    assert ControlTexts([]).places("<|end|>", joins=True) == set()


def test_a_special_added_token_of_one_character_is_harmless_too(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(byte_level_json())
    backend.add_special_tokens([AddedToken("é", normalized=False)])
    tokenizer = Tokenizer.from_folder(write_folder(tmp_path, backend.to_str(), chat_template=CHATML))
    ids = tokenizer.encode_chat([{"role": "user", "content": "café"}])
    assert "café" in tokenizer.decode(ids)
    assert tokenizer.encode("é")[0] not in ids
