from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from outpace.train.batch import Plan
from outpace.train.feeding import feed
from outpace.train.text.corpus import Conversation


def plan(step: int) -> Plan | None:
    if step == 5:
        return None
    tokens = np.arange(step, step + 9, dtype=np.int32)
    return Plan.of([Conversation(tokens, 2, False, "x")], 2)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "outpace-feed"]


@pytest.mark.parametrize("first", [0, 4])
def test_plans_made_ahead_are_those_made_on_the_spot(first: int) -> None:
    found = []
    for is_ahead in (False, True):
        with feed(plan, first, is_ahead=is_ahead) as plans:
            found.append([next(plans) for _ in range(7)])
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert (one.lengths, one.shapes) == (other.lengths, other.shapes)
            assert torch.equal(one.flat, other.flat)


def test_the_thread_is_gone_afterwards_also_after_an_error() -> None:
    def stopped() -> None:
        with feed(plan, 0, is_ahead=True) as plans:
            next(plans)
            assert len(threads()) == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not threads()


def test_what_the_planner_raises_is_raised_in_its_turn() -> None:
    def broken(step: int) -> Plan | None:
        if step == 2:
            raise ValueError("step 2")
        return plan(step)

    with feed(broken, 0, is_ahead=True) as plans:
        assert next(plans) is not None
        assert next(plans) is not None
        with pytest.raises(ValueError, match="step 2"):
            next(plans)
