from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import outpace
from outpace import LanguageModel
from outpace.errors import UsageError
from outpace.train.adapt import objectives
from outpace.train.adapt.adapting import Adapting
from outpace.train.adapt.export import read_result
from outpace.train.adapt.measure import Measured, measure
from outpace.train.adapt.settings import AdaptSettings
from outpace.train.target import identity_of
from outpace.train.text.corpus import Conversation
from outpace.train.trainer import Outcome, StepReport, train
from tests.adapting import learner_of, settings_of
from tests.training import written_by

JACOBI = {"block": 3, "tokens_per_batch": 512}


@pytest.fixture(scope="module")
def text(lm: LanguageModel) -> list[Conversation]:
    return written_by(lm, 256, seed=0)


@pytest.fixture(scope="module")
def held_out(lm: LanguageModel) -> list[Conversation]:
    return written_by(lm, 24, seed=1)


def run(
    lm: LanguageModel,
    settings: AdaptSettings,
    text: list[Conversation],
    held_out: list[Conversation],
    folder: Path,
    **given: Any,
) -> Outcome[Measured]:
    mask_token = 96 if settings.weights == "full" else None
    start = given.pop("start", None)
    own = Adapting(learner_of(lm, settings, mask_token), settings, text, held_out, [], identity_of(lm), start)
    return train(own, folder, **given)


@pytest.mark.parametrize("shift", [1, 0])
def test_a_tiny_adapter_learns_to_unmask_far_above_chance(
    lm: LanguageModel, text: list[Conversation], held_out: list[Conversation], tmp_path: Path, shift: int
) -> None:
    """Chance: always the most frequent token. Without a shift more is to be learned, and less is in as many steps."""
    found = run(lm, settings_of(steps=100, shift=shift), text, held_out, tmp_path)
    tokens = np.concatenate([own.tokens[own.num_prompt :] for own in held_out])
    chance = np.bincount(tokens).max() / len(tokens)
    assert chance < 0.15
    assert found.measured.accuracy > (0.75 if shift else 0.45)
    assert found.measured.score > (found.score_before or 0) + 0.5
    if shift:
        assert found.measured.score > 1.8  # twice as fast as the original, with its own text
    learner = learner_of(lm, settings_of(shift=shift))
    learner.load(read_result(found.path))
    assert measure(learner, held_out, [], settings_of(shift=shift)) == found.measured


def test_shuffled_labels_teach_nothing(
    lm: LanguageModel,
    text: list[Conversation],
    held_out: list[Conversation],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The negative control: the same run on the labels of other slots, measured by the true ones."""
    true_loss = objectives.label_loss

    def shuffled(states: Any, matrix: Any, tokens: torch.Tensor, weights: Any, soft: Any, *rest: Any) -> Any:
        order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(len(tokens)))
        return true_loss(states, matrix, tokens[order], weights, soft * 0, *rest)

    monkeypatch.setattr(objectives, "label_loss", shuffled)
    found = run(lm, settings_of(steps=60), text, held_out, tmp_path)
    assert found.measured.accuracy < 0.2
    assert found.measured.score < 1.0


def test_a_tiny_adapter_learns_to_jump_to_the_fixed_point(
    lm: LanguageModel, text: list[Conversation], held_out: list[Conversation], tmp_path: Path
) -> None:
    found = run(lm, settings_of("jacobi", steps=160, **JACOBI), text, held_out, tmp_path)
    before, after = found.before, found.measured
    assert before is not None
    assert before.clean_agreement == 1.0
    assert after.rows[0].tokens_per_pass > before.rows[0].tokens_per_pass + 0.15
    assert after.clean_agreement is not None
    assert after.clean_agreement > 0.8
    assert after.score > before.score


def test_all_weights_may_learn_while_the_text_stays_good(
    lm: LanguageModel, text: list[Conversation], held_out: list[Conversation], tmp_path: Path
) -> None:
    found = run(lm, settings_of(weights="full", steps=60, rate=3e-3), text, held_out, tmp_path)
    assert found.path.name == "weights.pt"
    assert found.measured.score > (found.score_before or 0) + 0.05
    assert found.measured.clean_agreement is not None
    assert found.measured.clean_agreement > 0.85


class Stop(Exception):
    pass


@pytest.mark.parametrize(("kind", "weights"), [("diffusion", "lora"), ("jacobi", "lora"), ("diffusion", "full")])
def test_a_run_that_was_stopped_ends_with_the_bits_of_one_that_was_not(
    lm: LanguageModel, text: list[Conversation], held_out: list[Conversation], tmp_path: Path, kind: str, weights: str
) -> None:
    settings = settings_of(kind, weights=weights, steps=6, save_every_s=0.0, measured_rows=60)
    whole = run(lm, settings, text, held_out, tmp_path / "whole")
    for last in (1, 3, 5):

        def stop(step: StepReport, last: int = last) -> None:
            if step.step == last:
                raise Stop

        folder = tmp_path / str(last)
        with pytest.raises(Stop):
            run(lm, settings, text, held_out, folder, report=stop)
        resumed = run(lm, settings, text, held_out, folder)
        assert resumed.path.read_bytes() == whole.path.read_bytes()
        assert resumed.measured == whole.measured
    again = run(lm, settings, text, held_out, tmp_path / "whole")
    assert again == whole


def test_a_run_goes_on_after_kill_9(lm: LanguageModel, tmp_path: Path) -> None:
    """The child dies while it writes its second checkpoint; what is there is the first."""
    code = """
        import os, signal, sys
        from pathlib import Path
        import outpace, torch
        from outpace.train import trainer
        from tests.training import written_by
        from tests.unit.train.adapt.test_adapting import run
        from tests.adapting import settings_of
        torch.set_num_threads(1)
        folder, ends = Path(sys.argv[2]), sys.argv[3] == "kill"
        lm = outpace.load(sys.argv[1], threads=1)
        saves, save = [], trainer.save_state
        def dying(path, state):
            saves.append(state)
            if ends and len(saves) == 4:
                path.with_name("state.pt.new").write_bytes(b"half")
                os.kill(os.getpid(), signal.SIGKILL)
            save(path, state)
        trainer.save_state = dying
        settings = settings_of(steps=5, save_every_s=0.0, measured_rows=60)
        run(lm, settings, written_by(lm, 24, seed=0), written_by(lm, 4, seed=1), folder)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(lm.path)]
    killed = tmp_path / "killed"
    assert subprocess.run([*command, str(killed), "kill"], timeout=100).returncode == -signal.SIGKILL
    assert not (killed / "adapter.gguf").exists()
    assert subprocess.run([*command, str(killed), "live"], timeout=100).returncode == 0
    settings = settings_of(steps=5, save_every_s=0.0, measured_rows=60)
    mine = outpace.load(lm.path, threads=1)
    whole = run(mine, settings, written_by(mine, 24, seed=0), written_by(mine, 4, seed=1), tmp_path / "whole")
    assert (killed / "adapter.gguf").read_bytes() == whole.path.read_bytes()


def test_held_out_text_without_a_block_is_refused(lm: LanguageModel, text: list[Conversation], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no held-out text with a block of 64 tokens"):
        run(lm, settings_of(block=64), text, text[:4], tmp_path)
