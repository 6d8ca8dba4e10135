from __future__ import annotations

import pytest

from outpace.errors import OutpaceError
from outpace.train.distill.settings import DistillSettings


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "needs an end"),
        ({"steps": 0}, "steps must be"),
        ({"steps": 1, "objective": "mse"}, "objective"),
        ({"steps": 1, "use": "toy"}, "use"),
        ({"steps": 1, "on_policy": 1.5}, "on_policy"),
        ({"steps": 1, "top_k": 0}, "top_k"),
        ({"steps": 1, "hidden": -1.0}, "hidden"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(OutpaceError, match=said):
        DistillSettings(**options)  # type: ignore[arg-type]


def test_gkd_learns_the_jensen_shannon_divergence_and_the_end_is_by_steps() -> None:
    settings = DistillSettings(steps=8, objective="gkd")
    assert settings.divergence == "jsd"
    assert DistillSettings(steps=8, objective="tvd").divergence == "tvd"
    assert [settings.done(step, 1e9) for step in (0, 4, 8)] == [0.0, 0.5, 1.0]
    assert settings.as_dict()["objective"] == "gkd"
