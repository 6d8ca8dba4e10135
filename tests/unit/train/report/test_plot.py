from __future__ import annotations

import math
from typing import Any

from outpace.train.report.plot import plot


def entry(step: int, simulated: float | None = None) -> dict[str, Any]:
    accuracy = [0.5, 0.25]
    return {"step": step, "loss": 10 / step, "accuracy_by_depth": accuracy, "simulated": simulated}


def test_a_log_becomes_a_picture() -> None:
    picture = plot([entry(step, 1.5 if step % 100 == 0 else None) for step in range(1, 501)], "a title")
    assert picture.startswith(b"\x89PNG")
    assert picture != plot([entry(step) for step in range(1, 501)], "a title")


def test_a_log_without_a_step_is_a_picture_too() -> None:
    empty = {"step": 1, "loss": math.nan, "accuracy_by_depth": [], "simulated": 1.2}
    assert plot([empty], "x").startswith(b"\x89PNG")
