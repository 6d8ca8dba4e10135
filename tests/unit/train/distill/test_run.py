from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import outpace
from outpace import LanguageModel
from outpace.errors import UsageError
from outpace.train.distill import run as runs
from outpace.train.distill.options import DistillOptions
from outpace.train.distill.run import DistillRun, Finished
from outpace.train.report.log import Log
from tests.unit.train.test_stages import prompts_file

SMALL: dict[str, Any] = {
    **{"layers": "2", "num_responses": 20, "max_tokens": 12, "num_checked": 4, "held_out": 0.2, "steps": 4},
    **{"batch_tokens": 256, "evaluations": 2, "learning_rate": 1e-3},
}


def opened(path: Path) -> LanguageModel:
    return outpace.load(path, threads=1)


def finished(lm: LanguageModel, folder: Path, prompts: Path, **options: Any) -> Finished | None:
    return DistillRun(DistillOptions(prompts=prompts, **SMALL | options), folder, lm).finish(opened, "outpace distill")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prompts_file(tmp_path_factory.mktemp("prompts") / "p.jsonl", 24)


@pytest.fixture(scope="module")
def whole(lm: LanguageModel, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert finished(lm, folder, prompts) is not None
    return folder


def test_a_run_leaves_a_folder_a_file_and_what_they_are_worth(whole: Path) -> None:
    assert opened(whole / "student").config.num_layers == opened(whole / "student.gguf").config.num_layers == 2
    result = json.loads((whole / "result.json").read_text())
    assert result["layers"][0] == 0
    assert result["layers"][-1] == 3
    assert (result["steps"], result["draft"]["same"]) == (4, result["draft"]["conversations"])
    assert len((whole / "log.jsonl").read_text().splitlines()) == 4
    assert "# A student of" in (whole / "card.md").read_text()
    assert (whole / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_stopped_while_measuring_goes_on_with_what_it_has(
    lm: LanguageModel, prompts: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(runs, "measure", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            finished(lm, tmp_path, prompts)
    with monkeypatch.context() as patched:
        patched.setattr(runs, "learn", lambda *given: 1 / 0)
        again = finished(lm, tmp_path, prompts)
    assert again is not None
    for name in ("student/model.safetensors", "student.gguf"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


def test_a_run_that_stopped_while_training_ends_with_the_same_student(
    lm: LanguageModel, prompts: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the third step, when the second was saved; what was chosen for the student is not chosen again."""
    add = Log.add

    def stopping(log: Log, entry: dict[str, Any]) -> None:
        add(log, entry)
        if entry["step"] == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Log, "add", stopping)
        with pytest.raises(KeyboardInterrupt):
            finished(lm, tmp_path, prompts)
    monkeypatch.setattr("outpace.train.distill.student.layer_importance", lambda *given: 1 / 0)
    assert finished(lm, tmp_path, prompts) is not None
    assert (tmp_path / "student.gguf").read_bytes() == (whole / "student.gguf").read_bytes()
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_the_settings_of_a_run_are_its_own(lm: LanguageModel, prompts: Path, whole: Path) -> None:
    with pytest.raises(UsageError, match="objective was 'fkl' and is 'tvd'"):
        finished(lm, whole, prompts, objective="tvd")


def test_a_run_may_end_before_its_end(lm: LanguageModel, prompts: Path, tmp_path: Path) -> None:
    assert finished(lm, tmp_path, prompts, until="responses") is None
    assert not (tmp_path / "training").exists()
    assert finished(lm, tmp_path, prompts, until="training") is None
    assert (tmp_path / "student.gguf").exists()
    assert not (tmp_path / "card.md").exists()
