from __future__ import annotations

import pytest

from outpace.cli.messages import told
from outpace.errors import UsageError


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("max_new_tokens must be at least 1, got 0", "--max-new-tokens must be at least 1, got 0"),
        ("threads must be at least 1, got 0", "--threads must be at least 1, got 0"),
        ("stop[0] must hold strings", "--stop[0] must hold strings"),
        ("context must be in [2, 8192] (this model's own limit), got 1", None),
        (
            "top_p=0.5 has no effect at temperature 0 (greedy): raise temperature, or leave it out",
            "--top-p 0.5 has no effect at temperature 0 (greedy): raise temperature, or leave it out",
        ),
        (
            'strategy "draft_model" needs a second, cheaper model: give draft_model=...',
            'strategy "draft_model" needs a second, cheaper model: give --draft-model ...',
        ),
        ("load it with adapter=PATH, or add verified=True", "load it with --adapter PATH, or add --verified"),
        ("slide=True cannot go with passes=4", "--slide cannot go with passes=4"),
        ("the cache holds 3: lower max_new_tokens or n", "the cache holds 3: lower --max-new-tokens or n"),
        (
            "unknown strategy 'x': allowed: auto, draft_model, ngram",
            "unknown strategy 'x': allowed: auto, draft_model, ngram",
        ),
        ("the context is full", "the context is full"),
        ("two\nlines  become one", "two lines become one"),
    ],
)
def test_options_are_called_what_they_are_called_here(message: str, shown: str | None) -> None:
    assert told(UsageError(message)) == (shown if shown is not None else "--" + message)


def test_a_system_error_is_told_with_its_file() -> None:
    assert told(FileNotFoundError(2, "No such file or directory", "/x")) == "/x: No such file or directory"
    assert told(OSError(28, "No space left on device")) == "No space left on device"
    assert told(MemoryError()).startswith("there is not enough memory")
