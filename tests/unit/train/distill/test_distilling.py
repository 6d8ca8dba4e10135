from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from outpace import LanguageModel
from outpace.errors import UsageError
from outpace.train.distill.distilling import Distilling
from outpace.train.distill.measure import Closeness
from outpace.train.distill.settings import DistillSettings
from outpace.train.state import load_tensors
from outpace.train.target import EngineTarget
from outpace.train.text.corpus import Conversation
from outpace.train.trainer import Outcome, StepReport, train
from tests.unit.train.distill.conftest import LAYERS, student_of

FAST: dict[str, Any] = {
    "tokens_per_batch": 512,
    "matrix_rate": 1e-2,
    "vector_rate": 1e-2,
    "warmup_steps": 5,
    "save_every_s": 1e9,
    "evaluations": 1,
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def run(
    lm: LanguageModel,
    target: EngineTarget,
    text: list[Conversation],
    held_out: list[Conversation],
    folder: Path,
    **options: Any,
) -> tuple[Outcome[Closeness], list[StepReport]]:
    reports: list[StepReport] = []
    settings = DistillSettings(**FAST | options)
    own = Distilling(student_of(lm), settings, text, held_out, target, folder / "likely", layers=LAYERS, ends=(1,))
    return train(own, folder, reports.append), reports


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "fkl"},
        {"objective": "rkl"},
        {"objective": "tvd", "use": "draft"},
        {"objective": "gkd", "on_policy": 0.3},
        {"objective": "fkl", "hidden": 0.5},
        {"objective": "fkl", "top_k": 16},
        {"objective": "fkl", "trains_embedding": True},
    ],
    ids=lambda own: " ".join(map(str, own.values())),
)
def test_distillation_brings_a_student_nearer_to_its_teacher(
    options: dict[str, Any],
    lm: LanguageModel,
    target: EngineTarget,
    text: list[Conversation],
    held_out: list[Conversation],
    tmp_path: Path,
) -> None:
    found, reports = run(lm, target, text, held_out, tmp_path, steps=40, **options)
    before, after = found.before, found.measured
    assert before is not None
    assert after.top1 > before.top1 + 0.1
    assert after.perplexity < before.perplexity
    assert after.tokens_per_step > before.tokens_per_step
    assert after.teacher_perplexity == pytest.approx(before.teacher_perplexity)
    assert sum(step.as_dict()["on_policy"] for step in reports) == pytest.approx(
        40 * options.get("on_policy", 0), abs=8
    )
    assert ["hidden" in step.parts for step in reports] == ["hidden" in options] * 40
    if "hidden" in options:
        distances = [step.as_dict()["hidden"] for step in reports]
        assert distances[-1] < distances[0]
    shared = load_tensors(found.path)["model.embed_tokens.weight"]
    original = student_of(lm).state_dict()["model.embed_tokens.weight"].half()
    assert torch.equal(shared, original) == ("trains_embedding" not in options)


def test_kept_likely_tokens_are_asked_for_once(
    lm: LanguageModel,
    target: EngineTarget,
    text: list[Conversation],
    held_out: list[Conversation],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second epoch computes nothing: no pass of the teacher is needed but those of measuring."""
    asked: list[int] = []
    padded = target.padded

    def counted(tokens: torch.Tensor, lengths: Any, taps: Any) -> Any:
        asked.append(len(lengths))
        return padded(tokens, lengths, taps)

    monkeypatch.setattr(target, "padded", counted)
    monkeypatch.setattr("outpace.train.distill.distilling.closeness", lambda *given: Closeness(1, 1.0, 1.0, 1.0, 1.0))
    run(lm, target, text[:32], held_out, tmp_path, steps=9, top_k=4)
    assert sum(asked) == 32


@pytest.mark.parametrize("options", [{}, {"objective": "gkd", "on_policy": 0.5, "top_k": 8, "hidden": 0.1}])
def test_a_run_that_was_killed_ends_with_the_same_bits(
    options: dict[str, Any],
    lm: LanguageModel,
    target: EngineTarget,
    text: list[Conversation],
    held_out: list[Conversation],
    tmp_path: Path,
) -> None:
    """Kill -9 in the middle of it, from within: the process has no chance to tidy up."""
    script = """
        import os, signal, sys
        from pathlib import Path
        import torch
        from outpace import load
        from outpace.train.target import EngineTarget
        from tests.training import written_by
        from tests.unit.train.distill.test_distilling import (
            FAST, LAYERS, DistillSettings, Distilling, student_of, train
        )

        torch.set_num_threads(1)
        lm = load(sys.argv[1], threads=1)
        text, held_out = written_by(lm, 48, seed=0, temperature=1.0), written_by(lm, 4, seed=1)
        settings = DistillSettings(steps=8, **FAST | {"save_every_s": 0.0} | eval(sys.argv[3]))

        def kill(step):
            if step.step == 6:
                (Path(sys.argv[2]) / "step-0000099.pt").touch()
                os.kill(os.getpid(), signal.SIGKILL)

        folder, target = Path(sys.argv[2]), EngineTarget(lm, "Tiny")
        own = {"layers": LAYERS, "ends": (1,)}
        train(Distilling(student_of(lm), settings, text, held_out, target, folder / "likely", **own), folder, kill)
    """
    place = Path(__file__).parents[4]
    command = [sys.executable, "-c", textwrap.dedent(script), str(lm.path), str(tmp_path / "run"), repr(options)]
    done = subprocess.run(command, cwd=place, env=os.environ | {"PYTHONPATH": "src"})
    assert done.returncode == -signal.SIGKILL
    whole, _ = run(lm, target, text[:48], held_out[:4], tmp_path / "whole", steps=8, save_every_s=0.0, **options)
    killed, rest = run(lm, target, text[:48], held_out[:4], tmp_path / "run", steps=8, save_every_s=0.0, **options)
    assert [step.step for step in rest] == [7, 8]
    assert killed.measured == whole.measured
    expected = load_tensors(whole.path)
    assert all(torch.equal(x, expected[name]) for name, x in load_tensors(killed.path).items())
    names = [{file.name for file in (tmp_path / own).iterdir()} for own in ("run", "whole")]
    assert names[0] == names[1], "what a kill left behind is gone"


def test_the_best_student_is_kept_and_not_the_last(
    lm: LanguageModel, target: EngineTarget, text: list[Conversation], held_out: list[Conversation], tmp_path: Path
) -> None:
    """At absurd rates it only gets worse: the outcome is the untrained student."""
    found, _ = run(lm, target, text, held_out, tmp_path, steps=4, matrix_rate=5.0, vector_rate=5.0)
    assert found.measured == found.before
    original = student_of(lm).state_dict()
    assert all(torch.equal(x, original[name].half()) for name, x in load_tensors(found.path).items())


def test_the_likely_tokens_are_fewer_than_all(
    lm: LanguageModel, target: EngineTarget, text: list[Conversation], held_out: list[Conversation], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"top_k must be below the {lm.config.vocab_size} tokens"):
        run(lm, target, text[:8], held_out[:2], tmp_path, steps=1, top_k=lm.config.vocab_size)
