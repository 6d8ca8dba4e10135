from __future__ import annotations

import copy
from datetime import datetime
from typing import Any

import pytest

from outpace.errors import TokenizerError, UsageError
from outpace.tokenizer import Tokenizer
from tests.vocabularies import byte_level_metadata

HI = [{"role": "user", "content": "hi"}]


def chat(template: str, messages: Any = HI, **variables: Any) -> str:
    tokenizer = Tokenizer.from_gguf(byte_level_metadata() | {"tokenizer.chat_template": template})
    return tokenizer.decode(tokenizer.encode_chat(messages, **variables), skip_special=False)


def test_a_template_gets_what_transformers_gives_it() -> None:
    assert chat("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}") == "<|im_start|>hi<|im_end|>"
    assert chat("{{ add_generation_prompt }}") == "True"
    assert chat("{{ add_generation_prompt }}", add_generation_prompt=False) == "False"
    assert chat("{{ tools is none }} {{ documents is none }} {{ thinking }}", thinking=3) == "True True 3"
    assert chat("{{ tools | tojson }}", tools=[{"n": "<é>"}]) == '[{"n": "<é>"}]'
    assert chat("{{ tools | tojson(indent=1) }}", tools=[1]) == "[\n 1\n]"
    assert chat("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert chat("a{% generation %}b{{ messages[0].role }}{% endgeneration %}c") == "abuserc"
    assert chat("a\n  {% if true %}\nb\n  {% endif %}\nc") == "a\nb\nc"  # trim_blocks, lstrip_blocks
    assert chat("{{ strftime_now('%Y') }}") in {str(datetime.now().year), str(datetime.now().year - 1)}


def test_a_variable_of_the_caller_goes_before_the_models_own() -> None:
    assert chat("{{ bos_token }}", bos_token="other") == "other"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({}) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ undefined_thing.x }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
        "{% include 'file' %}",
    ],
)
def test_what_the_sandbox_forbids_and_what_goes_wrong_is_a_tokenizer_error(template: str) -> None:
    with pytest.raises(TokenizerError, match="the chat template failed: "):
        chat(template)


def test_a_refusal_by_the_template_is_passed_on_in_its_words() -> None:
    with pytest.raises(TokenizerError, match="roles must alternate"):
        chat("{{ raise_exception('roles must alternate') }}")


def test_a_template_that_is_no_jinja_is_refused() -> None:
    with pytest.raises(TokenizerError, match="cannot be compiled"):
        chat("{% if %}")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one, got \\[\\]"),
        ("hello", "a chat is a list of messages"),
        (None, "a chat is a list of messages"),
        (["hello"], "message 0 must be a dict"),
        ([*HI, {"content": "x"}], 'message 1 needs a "role"'),
        ([{"role": 5, "content": "x"}], 'message 0 needs a "role" .a string., got 5'),
        ([{"role": "user"}], 'message 0 needs a "content"'),
        ([{"role": "user", "content": 5}], 'message 0 needs a "content"'),
        ([{"role": "user", "content": None}], 'message 0 needs a "content"'),
    ],
)
def test_malformed_messages_are_refused_with_their_place(messages: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        chat("", messages)


def test_a_message_of_tool_calls_needs_no_content() -> None:
    messages = [*HI, {"role": "assistant", "tool_calls": [{"name": "f"}]}]
    assert chat("{{ messages[1].tool_calls[0].name }}", messages) == "f"


def test_messages_are_not_changed() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "<|im_end|>"}], "own": ["<|im_end|>"]}]
    before = copy.deepcopy(messages)
    chat("{{ messages[0].content }}", messages)
    assert messages == before


def test_a_content_of_parts_is_their_lines() -> None:
    content = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert chat("{{ messages[0].content }}", [{"role": "user", "content": content}]) == "one\ntwo"
    assert chat("[{{ messages[0].content }}]", [{"role": "user", "content": []}]) == "[]"


def test_control_tokens_in_parts_are_plain_text() -> None:
    template = "{{ bos_token }}{{ messages[0].content }}"
    tokenizer = Tokenizer.from_gguf(byte_level_metadata() | {"tokenizer.chat_template": template})
    parts = [{"type": "text", "text": "<|im_end|>"}]
    ids = tokenizer.encode_chat([{"role": "user", "content": parts}])
    assert [i in tokenizer.control_ids for i in ids].count(True) == 1  # the template's own
    assert tokenizer.decode(ids, skip_special=False) == "<|im_start|><|im_end|>"


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (
            {"type": "image_url", "image_url": {"url": "x"}},
            "message 0 has a part of type 'image_url': this model reads",
        ),
        ("text", "message 0 has the part 'text': this model reads text only"),
        ({"text": "no type"}, "message 0 has the part .*: this model reads text only"),
        ({"type": "text", "text": None}, 'message 0 has a part whose "text" is None, not a string'),
    ],
)
def test_a_part_that_is_no_text_is_refused(part: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        chat("{{ messages[0].content }}", [{"role": "user", "content": [part]}])
