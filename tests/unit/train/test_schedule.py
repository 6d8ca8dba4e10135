from __future__ import annotations

import pytest

from outpace.train.schedule import factor


def test_it_warms_up_stays_and_falls_to_three_percent() -> None:
    assert [factor(step, 0.0, 4) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factor(100, 0.49, 4) == 1.0
    assert factor(100, 0.75, 4) == pytest.approx(0.5)
    assert factor(100, 0.999, 4) == 0.03
    assert factor(0, 0.0, 0) == 1.0
