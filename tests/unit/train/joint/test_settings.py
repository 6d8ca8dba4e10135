from __future__ import annotations

from typing import Any

import pytest

from outpace.errors import UsageError
from outpace.train.joint.settings import JointSettings


def test_the_target_waits_for_the_heads_and_then_joins_by_and_by() -> None:
    own = JointSettings(heads_first=0.25)
    assert [own.pace(done) for done in (0.0, 0.24, 0.25, 0.375, 0.5, 1.0)] == [0.0, 0.0, 0.0, 0.5, 1.0, 1.0]
    assert JointSettings(heads_first=0.0).pace(0.0) == 1.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"heads_weight": 0.0}, "nothing teaches the heads"),
        ({"heads_first": 1.0}, "heads_first"),
        ({"rank": 0}, "rank"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        JointSettings(**changes)
