from __future__ import annotations

from pathlib import Path

import pytest

import outpace
from outpace.measure.quality.tasks import KINDS, Task, exact_match, repetition, tasks
from tests.folder import make_folder


def test_every_task_follows_from_its_own_question() -> None:
    found = tasks(40)
    assert [task.kind for task in found] == [kind for kind in KINDS for _ in range(40)]
    for task in found:
        *_, question = task.turns
        if task.kind == "arithmetic":
            a, sign, b = question.removeprefix("What is ").rstrip("?").split()
            assert int(task.answer) == (int(a) + int(b) if sign == "+" else int(a) - int(b)) >= 0
        elif task.kind == "copy":
            assert question == f"Repeat this sentence: {task.answer}"
        else:
            order, sentence = question.removeprefix("Replace ").split(": ")
            old, new = order.split(" with ")
            assert old != new
            assert sentence.replace(old, new, 1) == task.answer != sentence


def test_the_set_is_the_same_everywhere_and_a_longer_one_begins_with_it() -> None:
    first = tasks(1)[0]
    assert first.turns == (
        *("What is 8 + 6?", "14"),
        *("What is 3 + 1?", "4"),
        "What is 8 - 2?",
    )
    longer = tasks(5)
    assert [*longer[:2], *longer[5:7], *longer[10:12]] == tasks(2)
    assert tasks(2, seed=1) != tasks(2)


def test_a_prompt_is_a_chat_with_two_solved_examples() -> None:
    task = Task("copy", ("a", "b", "c"), "d")
    assert task.messages == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]


def test_a_model_without_a_chat_template_gets_lines(tmp_path: Path) -> None:
    task = Task("copy", ("a cat", "a dog", "a log"), "")
    lm = outpace.load(make_folder(tmp_path / "chat"), threads=1)
    assert task.encode(lm.tokenizer).count(0) == 4  # <|im_start|>: three turns, and the one to come
    (tmp_path / "chat" / "tokenizer_config.json").unlink()
    lm = outpace.load(tmp_path / "chat", threads=1)
    assert lm.tokenizer.decode(task.encode(lm.tokenizer)) == "a cat\na dog\na log\n"


@pytest.mark.parametrize(
    ("kind", "answer", "text", "is_right"),
    [
        ("arithmetic", "12", "12", True),
        ("arithmetic", "12", " 7 + 5 = 12.\nAnd so on, 13.", True),
        ("arithmetic", "12", "120", False),
        ("arithmetic", "12", "12 or 13", False),
        ("arithmetic", "1", "-1", False),
        ("arithmetic", "12", "", False),
        ("copy", "Tom hid it.", '"Tom hid it."', True),
        ("copy", "Tom hid it.", "Sure:\n\nTom hid it.\n", True),
        ("copy", "Tom hid it.", "Tom hid it", False),
        ("edit", "Tom hid it.", "Tom hid it. Anna hid it.", False),
        ("edit", "Tom hid it.", "\n\n", False),
    ],
)
def test_an_answer_is_right_when_it_is_the_answer(kind: str, answer: str, text: str, is_right: bool) -> None:
    assert Task(kind, ("?",), answer).is_right(text) == is_right


def test_the_share_of_right_answers_is_by_kind() -> None:
    some = [Task("copy", ("?",), "a"), Task("edit", ("?",), "b"), Task("copy", ("?",), "c"), Task("copy", ("?",), "d")]
    assert exact_match(some, ["a", "x", "c", "d e"]) == {"copy": 2 / 3, "edit": 0.0}
    with pytest.raises(ValueError, match="shorter"):
        exact_match(some, ["a"])


def test_repetition_is_the_share_of_runs_that_came_before() -> None:
    assert repetition([[1, 2, 3, 4, 5, 6]]) == 0.0
    assert repetition([[7] * 11]) == 7 / 8
    assert repetition([[1, 2, 3], [1, 2, 3]], size=2) == 0.0
    assert repetition([[1, 2, 1, 2, 1]], size=2) == 0.5
    assert repetition([[], [1]]) == 0.0
