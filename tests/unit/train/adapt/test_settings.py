from __future__ import annotations

from typing import Any

import pytest

from outpace.errors import UsageError
from outpace.train.adapt.settings import AdaptSettings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": None}, "needs an end"),
        ({"kind": "eagle"}, "unknown kind .eagle.: allowed: diffusion, jacobi"),
        ({"min_noise": 0.8, "max_noise": 0.3}, "min_noise must be below max_noise"),
        ({"kind": "jacobi", "shift": 0}, "shift must be 1 for jacobi"),
        ({"block": 1}, r"block must be in \[2, 256\]"),
        ({"soft": 1.5}, r"soft must be in \[0, 1\]"),
        ({"format": "Q4_1"}, "unknown format .Q4_1."),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        AdaptSettings(**{"kind": "diffusion", "steps": 3} | changes)


@pytest.mark.parametrize(
    ("kind", "weights", "expected"),
    [("diffusion", "lora", False), ("diffusion", "full", True), ("jacobi", "lora", True), ("jacobi", "full", True)],
)
def test_only_a_diffusion_adapter_leaves_clean_tokens_alone(kind: Any, weights: Any, expected: bool) -> None:
    assert AdaptSettings(kind, steps=1, weights=weights).is_clean_adapted == expected


def test_the_end_is_that_of_steps_or_time() -> None:
    settings = AdaptSettings("diffusion", steps=10, budget_s=100.0)
    assert settings.done(5, 1.0) == 0.5
    assert settings.done(5, 100.0) == 1.0
    assert settings.as_dict()["steps"] == 10
