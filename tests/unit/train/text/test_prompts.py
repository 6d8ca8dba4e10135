from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from outpace.errors import UsageError
from outpace.train.text.prompts import Prompt, parse, read_prompts

SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}
ANSWER = {"role": "assistant", "content": "Hi!"}


def read(*entries: Any) -> list[Prompt]:
    return parse([json.dumps(entry) for entry in entries], "p.jsonl")


def test_every_form_of_a_prompt_is_read() -> None:
    hello = Prompt((USER,))
    assert read("Hello", {"prompt": "Hello"}, {"messages": [USER]}, {"turns": ["Hello"]}) == [hello] * 4
    assert read({"messages": [SYSTEM, USER]})[0].messages == (SYSTEM, USER)


def test_turns_after_the_first_are_said_later() -> None:
    (found,) = read({"category": "writing", "turns": ["Hello", "Shorter", "Again"], "question_id": 3})
    assert (found.messages, found.turns, found.kind) == ((USER,), ("Shorter", "Again"), "writing")
    assert found.text == "Hello\nShorter\nAgain"


def test_what_an_assistant_said_last_is_left_out_and_earlier_answers_stay() -> None:
    (found,) = read({"messages": [SYSTEM, USER, ANSWER, USER, ANSWER]})
    assert found.messages == (SYSTEM, USER, ANSWER, USER)
    assert found.text == "Hello\nHi!\nHello"


def test_a_prompt_comes_back_from_its_line() -> None:
    prompts = read({"kind": "x", "messages": [SYSTEM, USER], "turns": ["ä"]}, "Hello")
    assert parse([prompt.to_json() for prompt in prompts], "again") == prompts


def test_blank_lines_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('\n"a prompt"\r\n  \n{"prompt": "b"}')
    assert [prompt.text for prompt in read_prompts(tmp_path / "p.jsonl")] == ["a prompt", "b"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Expecting"),
        ("Hello", "Expecting"),
        ("3", "neither a text nor an object"),
        ('""', "not empty"),
        ('" "', "not empty"),
        ("{}", "none of these keys"),
        ('{"prompt": 3}', "must be a text"),
        ('{"turns": "Hello"}', "must be a list"),
        ('{"turns": []}', "not empty"),
        ('{"turns": ["a", ""]}', "not empty"),
        ('{"messages": []}', "no message of a user"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "no message of a user"),
        ('{"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]}', "another one follows"),
        ('{"messages": [{"role": "user", "content": null}]}', "must be a text"),
        ('{"messages": [{"content": "x"}]}', "role"),
        ('{"messages": ["x"]}', "role"),
        ('{"prompt": "x", "kind": ""}', "the kind"),
        ('"\\ud800"', "half a character"),
        ("[" * 5000, "nested too deeply"),
    ],
)
def test_a_line_that_is_no_prompt_is_named_with_the_reason(line: str, reason: str) -> None:
    with pytest.raises(UsageError, match=r"p\.jsonl, line 2: .*" + reason):
        parse(['"fine"', line], "p.jsonl")


def test_a_file_without_prompts_is_refused() -> None:
    with pytest.raises(UsageError, match="holds no prompts"):
        parse(["", " "], "p.jsonl")
