from __future__ import annotations

import os
from pathlib import Path

import pytest

from outpace.cli.measuring import at_least, known, numbers, output_folder, words
from outpace.errors import UsageError


def test_lists_are_read_between_commas() -> None:
    assert words("a, b,,c ", "--x", "a") == ["a", "b", "c"]
    assert numbers("0, 12", "--x", 0) == [0, 12]
    assert known("b,a", ("a", "b"), "--x") == ["b", "a"]


def test_every_error_names_the_option_and_what_is_allowed() -> None:
    for attempt, message in (
        (
            lambda: words(" , ", "--strategies", "auto,ngram"),
            "--strategies needs at least one value, separated by comma",
        ),
        (lambda: numbers("1,x", "--batch", 1), "--batch takes whole numbers separated by commas .* got '1,x'"),
        (lambda: numbers("", "--batch", 1), "--batch needs at least one value"),
        (lambda: numbers("1,0", "--batch", 1), "--batch must be at least 1, got 0"),
        (lambda: known("gredy", ("greedy", "sampled"), "--sampling"), "--sampling 'gredy': did you mean 'greedy'"),
        (lambda: at_least(2, num_tokens=1), "--num-tokens must be at least 2, got 1"),
    ):
        with pytest.raises(UsageError, match=message):
            attempt()


def test_a_folder_for_results_is_made_or_refused(tmp_path: Path) -> None:
    output_folder(tmp_path / "a" / "b", "x.json")
    assert os.listdir(tmp_path / "a" / "b") == []
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--output: .* cannot be made a folder"):
        output_folder(tmp_path / "file", "x.json")
    (tmp_path / "a" / "x.json").mkdir()
    os.mkfifo(tmp_path / "a" / "pipe.json")
    output_folder(tmp_path / "a", "pipe.json")  # whose reader may come later
    with pytest.raises(UsageError, match=r"x\.json' cannot be written"):
        output_folder(tmp_path / "a", "x.json")
