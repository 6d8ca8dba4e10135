from __future__ import annotations

from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from outpace.errors import OutpaceError
from outpace.train.distill.options import DistillOptions, StudentOptions
from outpace.train.distill.settings import OBJECTIVES, USES


def test_layers_are_a_number_or_a_list() -> None:
    number, listed = DistillOptions(layers="8"), DistillOptions(layers="0,1,28,29")
    assert (number.num_layers, number.given_layers) == (8, None)
    assert (listed.num_layers, listed.given_layers) == (None, (0, 1, 28, 29))
    folder = DistillOptions(student=Path("x"))
    assert (folder.num_layers, folder.given_layers) == (None, None)


def test_half_of_the_steps_of_gkd_are_on_text_of_the_student_s_own() -> None:
    assert DistillOptions(layers="8", objective="gkd").own_text == 0.5
    assert DistillOptions(layers="8", objective="gkd", on_policy=0.0).own_text == 0.0
    assert DistillOptions(layers="8").own_text == 0.0
    assert DistillOptions(layers="8", on_policy=0.2).own_text == 0.2


def test_words_are_those_of_the_trainer() -> None:
    hints = get_type_hints(StudentOptions)
    assert get_args(hints["objective"]) == OBJECTIVES
    assert get_args(hints["use"]) == USES


@pytest.mark.parametrize(
    "options",
    [
        {"layers": "8", "width": 0},
        {"layers": "8", "top_k": 0},
        {"layers": "8", "on_policy": 2.0},
        {"layers": "8", "on_policy_tokens": 0},
        {"layers": "8", "hidden": -1.0},
        {"layers": "8", "budget": "soon"},
        {"layers": ""},
        {"layers": "1,"},
        {"layers": "8", "format": "q2"},
        {"layers": "8", "importance": "size"},
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(OutpaceError):
        DistillOptions(**options)  # type: ignore[arg-type]
