from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import outpace
from outpace import LanguageModel
from outpace.errors import UsageError
from outpace.train.distill.options import DistillOptions
from outpace.train.distill.student import student_of
from outpace.train.text.corpus import Conversation
from tests.folder import make_folder
from tests.training import tiny_lm
from tests.unit.train.distill.conftest import LAYERS
from tests.unit.train.distill.conftest import student_of as cut_of

CPU = torch.device("cpu")


def made(lm: LanguageModel, text: list[Conversation], known: dict[str, Any] | None = None, **options: Any) -> Any:
    return student_of(DistillOptions(**options), lm, text, CPU, known or {})


def test_listed_layers_are_the_teacher_s(lm: LanguageModel, text: list[Conversation]) -> None:
    student, chosen = made(lm, text, layers=",".join(map(str, LAYERS)))
    assert (student.layers, chosen) == (LAYERS, {"layers": list(LAYERS)})
    expected = cut_of(lm).state_dict()
    found = student.network.state_dict()
    assert all(torch.equal(x, expected[name]) for name, x in found.items())


def test_a_number_of_layers_is_chosen_by_importance_once(lm: LanguageModel, text: list[Conversation]) -> None:
    for measure in ("cosine", "perplexity"):
        student, chosen = made(lm, text, layers="3", importance=measure)
        assert student.layers is not None
        assert {0, 3} < set(student.layers)
        assert len(chosen["importance"]) == 4
    again, _ = made(lm, text, {"importance": [0.0, 9.0, 5.0, 0.0]}, layers="3")
    assert again.layers == (0, 1, 3)


def test_a_narrower_student_has_the_neurons_that_were_chosen(lm: LanguageModel, text: list[Conversation]) -> None:
    student, chosen = made(lm, text, layers="0,2", width=40)
    assert [len(own) for own in chosen["neurons"]] == [40, 40]
    assert student.config["intermediate_size"] == student.network.config.feed_forward_width == 40
    other = [list(range(40)), list(range(40, 80))]
    again, _ = made(lm, text, {"neurons": other}, layers="0,2", width=40)
    whole, _ = made(lm, text, layers="0,2")
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(again.network.state_dict()[name], whole.network.state_dict()[name][40:80])


def test_a_folder_of_the_same_vocabulary_may_be_the_student(
    lm: LanguageModel, text: list[Conversation], tmp_path: Path
) -> None:
    """Another architecture and another width; what was trained is written with its own config."""
    path = make_folder(tmp_path / "small", "qwen3", hidden_size=32, num_hidden_layers=1)
    student, chosen = made(lm, text, student=path)
    assert (student.layers, chosen, student.network.config.width) == (None, {}, 32)
    assert student.write(tmp_path / "out", student.network.state_dict(), "small", "q8_0") is None
    for name in ("student", "student.gguf"):
        again = outpace.load(tmp_path / "out" / name, threads=1)
        assert (again.config.model_type, again.config.num_layers) == ("qwen3", 1)
        lossless = lm.generate(
            "the cat", max_new_tokens=12, strategy="draft_model", draft_model=tmp_path / "out" / name
        )
        assert lossless.tokens == lm.generate("the cat", max_new_tokens=12, strategy="none").tokens


def test_students_that_cannot_learn_are_refused(lm: LanguageModel, text: list[Conversation], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="another vocabulary"):
        made(lm, text, student=make_folder(tmp_path / "other", vocab=300))
    with pytest.raises(UsageError, match="a granite network cannot run in PyTorch yet"):
        made(lm, text, student=make_folder(tmp_path / "granite", "granite"))
    with pytest.raises(UsageError, match="no student can be made of it"):
        made(tiny_lm(tmp_path, "olmo2"), text, layers="1")
    with pytest.raises(UsageError, match="different ones of 0 to 3"):
        made(lm, text, layers="0,7")


def test_why_there_is_no_gguf_file_is_told(text: list[Conversation], tmp_path: Path) -> None:
    teacher = tiny_lm(tmp_path, rope_scaling={"rope_type": "linear", "factor": 2.0})
    student, _ = made(teacher, text, layers="0,1")
    assert student.write(tmp_path / "out", student.network.state_dict(), "tiny", "f16") is not None
    assert outpace.load(tmp_path / "out" / "student", threads=1).config.num_layers == 2
    assert not (tmp_path / "out" / "student.gguf").exists()
