from __future__ import annotations

from typing import Any

from outpace.train.report.plot import plot


def entry(step: int, score: float | None = None, **parts: Any) -> dict[str, Any]:
    measured = None if score is None else {"score": score}
    return {"step": step, "loss": 10 / step, "positions": 9, "measured": measured} | parts


def test_a_log_becomes_a_picture() -> None:
    steps, parts = range(1, 501), {"accuracy_by_depth": [0.5, 0.25]}
    picture = plot([entry(step, 1.5 if step % 100 == 0 else None, **parts) for step in steps], "a title")
    assert picture.startswith(b"\x89PNG")
    assert picture != plot([entry(step, **parts) for step in steps], "a title")
    assert picture != plot([entry(step, 1.5 if step % 100 == 0 else None, accuracy=0.5) for step in steps], "a title")


def test_a_log_without_a_step_that_learned_is_a_picture_too() -> None:
    assert plot([entry(1, 1.2) | {"loss": None, "positions": 0}], "x").startswith(b"\x89PNG")


def test_a_training_that_counts_no_guesses_has_no_such_curve() -> None:
    """A student's, as that of `outpace distill`."""
    assert plot([entry(step) for step in range(1, 9)], "x") != plot([entry(s, accuracy=1.0) for s in range(1, 9)], "x")
