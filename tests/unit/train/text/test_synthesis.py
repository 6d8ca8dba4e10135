from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import outpace
from outpace.api import LanguageModel, Result
from outpace.errors import UsageError
from outpace.train.text.prompts import Prompt, user_prompt
from outpace.train.text.synthesis import KIND, UserTurn, prompt_from
from tests.folder import make_folder


def test_the_model_speaks_after_what_its_template_writes_before_a_user(lm: LanguageModel) -> None:
    turn = UserTurn.of(lm.tokenizer)
    assert lm.tokenizer.decode(turn.header, skip_special=False) == "<|im_start|>user\n"
    assert turn.stop == {"stop_tokens": [1]}, "<|im_end|>"


def test_a_template_that_marks_the_end_with_plain_text_is_stopped_by_that_text(tmp_path: Path) -> None:
    template = "{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}"
    plain = outpace.load(make_folder(tmp_path / "m", template=template), threads=1)
    turn = UserTurn.of(plain.tokenizer)
    assert plain.tokenizer.decode(turn.header).startswith("[INST]")
    assert turn.stop == {"stop": ["[/INST]"]}


def test_a_system_message_of_the_template_belongs_to_the_header(tmp_path: Path) -> None:
    template = "<|im_start|>system\nBe kind.<|im_end|>\n{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    template += "{{ m['content'] }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    kind = outpace.load(make_folder(tmp_path / "m", template=template), threads=1)
    header = kind.tokenizer.decode(UserTurn.of(kind.tokenizer).header, skip_special=False)
    assert header == "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n"


def test_a_template_that_writes_nothing_around_a_message_cannot_be_used(tmp_path: Path) -> None:
    bare = outpace.load(make_folder(tmp_path / "m", template="{{ messages[0]['content'] }}"), threads=1)
    with pytest.raises(UsageError, match="--prompts or --texts"):
        UserTurn.of(bare.tokenizer)


def said(lm: LanguageModel, text: str, reason: str = "stop", tokens: list[int] | None = None) -> Prompt | None:
    result: Result = lm.generate([2, 3], max_new_tokens=1)
    own = lm.tokenizer.encode_text(text) if tokens is None else tokens
    return prompt_from(replace(result, text=text, tokens=own, finish_reason=reason))  # type: ignore[arg-type]


def test_what_was_said_becomes_a_prompt(lm: LanguageModel) -> None:
    assert said(lm, "  Name three rivers. \n") == user_prompt("Name three rivers.", KIND)


def test_what_was_cut_off_ends_at_its_last_sentence(lm: LanguageModel) -> None:
    found = said(lm, "Name three rivers. Pi is 3.14! And then the", "length")
    assert found == user_prompt("Name three rivers. Pi is 3.14!", KIND)
    assert said(lm, "Name three rivers and then the", "length") is None


def test_what_is_too_short_or_repeats_itself_is_none(lm: LanguageModel) -> None:
    assert said(lm, "Hi") is None
    assert said(lm, "\ufffd\ufffd Hello \ufffd") is None
    assert said(lm, "Name three rivers.", tokens=[5] * 60) is None
