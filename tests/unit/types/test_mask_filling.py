from __future__ import annotations

import dataclasses

import pytest

from outpace.types import Canvas, MaskFilling


def test_networks_keep_the_shift_and_see_what_is_before_unless_they_say_so() -> None:
    filling = MaskFilling(mask_token=5, block=8)
    assert (filling.shift, filling.sees_all, filling.is_trained) == (1, False, True)


def test_a_canvas_is_settled_when_it_is_laid() -> None:
    canvas = Canvas((1, 5), (False, True), num_known=1, num_scored=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        canvas.num_known = 2  # type: ignore[misc]
