from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

import outpace
from outpace import LanguageModel
from outpace.models.checkpoint import open_checkpoint
from outpace.train.distill.folder import Shape, student_config, write_folder
from outpace.train.distill.outcome import Outcome, measure, num_parameters
from outpace.train.text.corpus import Conversation
from tests.unit.train.distill.conftest import LAYERS, student_of


@pytest.fixture(scope="module")
def path(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    teacher, folder = open_checkpoint(lm.path), tmp_path_factory.mktemp("student")
    config = student_config(teacher, Shape(LAYERS, lm.config.feed_forward_width))
    write_folder(folder, teacher, config, student_of(lm).state_dict())
    return folder


@pytest.fixture(scope="module")
def measured(lm: LanguageModel, path: Path, held_out: list[Conversation]) -> Outcome:
    """A clock that moves by a second whenever it is asked: each turn of a model takes one."""
    ticks = count()
    student = outpace.load(path, threads=1)
    asked = count()
    return measure(lm, student, path, held_out, 4, lambda: next(asked) < 5, lambda: float(next(ticks)))


def test_drafting_changes_no_token_and_steps_are_counted(measured: Outcome) -> None:
    """The first conversation is always decoded; five more were allowed."""
    assert measured.draft.conversations == measured.draft.same == 6
    assert 1 < measured.draft.tokens_per_step <= 40 / 9


def test_both_models_are_measured_side_by_side(measured: Outcome, lm: LanguageModel) -> None:
    assert measured.teacher.parameters == num_parameters(lm)
    layers = lm.config.num_layers - len(LAYERS)
    one = measured.teacher.parameters - measured.student.parameters
    assert one % layers == 0
    assert measured.student.bytes < measured.teacher.bytes
    assert measured.teacher.speed == measured.draft.speed == 4 * 48
    for own in (measured.teacher, measured.student):
        assert set(own.right) == {"arithmetic", "copy", "edit"}
        assert 0 <= own.repetition <= 1


def test_an_outcome_is_plain_values(measured: Outcome) -> None:
    values = measured.as_dict()
    assert values["student"]["parameters"] == measured.student.parameters
    assert values["draft"]["same"] == 6
