from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from outpace.errors import UsageError
from outpace.measure.prompts import TaskPrompt
from outpace.measure.prompts import task_prompts as prompts

CATEGORIES = {
    "chat", "code", "code editing", "summarising", "translation", "question answering", "arithmetic", "extraction",
    "JSON", "story",
}  # fmt: skip


def test_the_built_in_set_has_at_least_four_prompts_of_every_category() -> None:
    counts = Counter(prompt.category for prompt in prompts.builtin())
    assert set(counts) == CATEGORIES
    assert min(counts.values()) >= 4
    assert sum(counts.values()) >= 40
    assert len({prompt.text for prompt in prompts.builtin()}) == sum(counts.values())


def test_a_file_of_spec_bench_gives_categories_and_first_turns(tmp_path: Path) -> None:
    entries = [{"question_id": 1, "category": "writing", "turns": ["a", "b"]}, {"category": "math", "turns": ["c"]}]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n\n".join(map(json.dumps, entries)))
    assert prompts.load_prompts(path) == [TaskPrompt("writing", "a"), TaskPrompt("math", "c")]
    assert prompts.load_prompts(None) == prompts.builtin()


def test_a_file_in_another_encoding_is_refused_with_line_byte_and_cure(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"category": "x", "turns": ["y"]}\n{"category": "x", "turns": ["café"]}\n'.encode("latin-1"))
    with pytest.raises(UsageError, match=r"latin\.jsonl is not UTF-8 text: byte 0xe9 at offset 66 \(line 2\)"):
        prompts.load_prompts(path)


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "windows.jsonl"
    path.write_bytes('{"category": "x", "turns": ["é"]}\r\n'.encode("utf-8-sig"))
    assert prompts.load_prompts(path) == [TaskPrompt("x", "é")]


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    """JSON allows U+2028 and U+0085 inside strings, where `str.splitlines` would cut."""
    path = tmp_path / "separators.jsonl"
    path.write_text('{"category": "x", "turns": ["a\u2028b\u0085c"]}\n', encoding="utf-8")
    assert prompts.load_prompts(path) == [TaskPrompt("x", "a\u2028b\u0085c")]


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "[" * 100_000,
        '{"category": "x", "turns": ["\\ud83d"]}',
        "[]",
        '{"category": "x"}',
        '{"category": "x", "turns": [" "]}',
        "3",
    ],
)
def test_a_line_that_is_no_prompt_is_named(line: str) -> None:
    with pytest.raises(UsageError, match="p, line 2"):
        prompts.parse(['{"category": "x", "turns": ["y"]}', line], "p")


def test_a_file_without_prompts_is_refused() -> None:
    with pytest.raises(UsageError, match="holds no prompts"):
        prompts.parse(["", "  "], "p")


def test_varied_takes_turns_among_categories() -> None:
    own = [TaskPrompt(category, text) for category, text in ("a1", "a2", "b1", "a3", "b2")]
    assert prompts.varied(own, 4) == [own[0], own[2], own[1], own[4]]
    assert len(prompts.varied(own, 9)) == 5


def test_spread_takes_the_first_of_every_category_in_order() -> None:
    own = [TaskPrompt(category, text) for category, text in ("a1", "a2", "b1", "a3", "b2")]
    assert prompts.spread(own, 1) == [own[0], own[2]]
    assert prompts.spread(own, 2) == [own[0], own[1], own[2], own[4]]
