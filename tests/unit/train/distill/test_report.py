from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from outpace.errors import UsageError
from outpace.train.distill.report import card, frontier, read_results, rows, table


def result(speed: float, top1: float, sha: str = "ab" * 32) -> dict[str, Any]:
    right = {"arithmetic": 0.5, "copy": 1.0, "edit": 0.25}
    model = {"parameters": 2_000_000, "bytes": 3_000_000, "right": right, "repetition": 0.125}
    closeness = {"positions": 99, "top1": top1, "perplexity": 4.0, "teacher_perplexity": 2.5, "tokens_per_step": 2.2}
    return {
        "options": {"layers": "0,3", "max_draft": 4},
        "layers": [0, 3],
        "feed_forward_width": 80,
        "before": closeness | {"top1": 0.1},
        "measured": closeness,
        "steps": 7,
        "positions": 1234,
        "device": "cpu",
        "seconds": 90.0,
        "teacher": model | {"speed": 20.0},
        "student": model | {"speed": speed, "bytes": 1_000_000},
        "draft": {"conversations": 8, "same": 8, "tokens_per_step": 2.1, "speed": 30.0},
        "origin": {
            "outpace": "0.3",
            "commit": None,
            "date": "today",
            "threads": 2,
            "ops": "native",
            "isa": "avx512",
            "versions": {"python": "3.12"},
            "machine": {"cpu": "a CPU", "cpus_allowed": 2, "system": "Linux"},
            "model": {"name": "tiny.gguf", "sha256": sha, "bytes": 5_000_000},
        },
    }


def saved(folder: Path, **own: Any) -> Path:
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(result(**own)))
    return folder


def test_a_card_says_what_it_is_how_good_and_how_fast() -> None:
    text = card(result(50.0, 0.75), "outpace distill")
    for part in (
        *("# A student of tiny.gguf", "`outpace distill`", "layers 0, 3; 80 neurons", "alone it is lossy"),
        "| student | 2.0 M | 1.0 MB | 50.0 | 4.00 | 75.0% | 50% | 100% | 25% | 12.5% |",
        "| teacher | 2.0 M | 3.0 MB | 20.0 | 2.50 | 100.0% |",
        *("| decoded, 8 conversations | 2.10 | 30.0 | 1.50 |", "untrained: 10.0%", "8 of 8", "7 steps, 1234 positions"),
    ):
        assert part in text


def test_rows_are_teacher_and_student() -> None:
    teacher, student = rows(result(50.0, 0.75), "small")
    assert (teacher[0], student[0]) == ("teacher", "small")
    assert (teacher[3], student[3]) == ("20.0", "50.0")


def test_students_are_compared_the_fastest_first(tmp_path: Path) -> None:
    folders = [saved(tmp_path / "half", speed=30.0, top1=0.9), saved(tmp_path / "eighth", speed=80.0, top1=0.6)]
    results = read_results(folders)
    lines = table(results).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["teacher", "eighth", "half"]
    assert lines[3].endswith("| 2.10 | 1.50 |")
    assert frontier(results).startswith(b"\x89PNG")


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    first = saved(tmp_path / "a", speed=1.0, top1=0.5)
    with pytest.raises(UsageError, match="different teachers"):
        read_results([first, saved(tmp_path / "b", speed=1.0, top1=0.5, sha="cd" * 32)])
    with pytest.raises(UsageError, match="holds no finished run"):
        read_results([tmp_path])
    (first / "result.json").write_text("{")
    with pytest.raises(UsageError, match="is damaged"):
        read_results([first])
