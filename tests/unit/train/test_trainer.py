"""The loop, with an objective that is small enough to be seen through: a matrix that learns to count tokens."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from outpace.errors import OutpaceError, UsageError
from outpace.train.objective import StepLosses, adamw, muon
from outpace.train.settings import LoopSettings
from outpace.train.state import load_state, load_tensors, save_tensors
from outpace.train.text.corpus import Conversation
from outpace.train.trainer import STATE, Outcome, StepReport, train

SIZE = 6
Beginning = Literal["unmeasured", "compared", "kept"]


@dataclass(frozen=True)
class Counted:
    """What a counter brings. error: of its counts, on held-out text."""

    error: float


def text_of(count: int, seed: int = 0) -> list[Conversation]:
    rng = np.random.default_rng(seed)
    return [
        Conversation(rng.integers(0, SIZE, rng.integers(4, 12)).astype(np.int32), 1, False, "x") for _ in range(count)
    ]


class Counting:
    """An objective: y = W x + b shall be twice the counts of a conversation's tokens, whose one-hot sum x is."""

    result, peak = "counter.pt", 1.0

    def __init__(
        self, beginning: Beginning = "unmeasured", *, is_accelerated: bool = False, rate: float = 0.2, **settings: Any
    ) -> None:
        self.settings = LoopSettings(**{"tokens_per_batch": 40, "warmup_steps": 2, "save_every_s": 0.0} | settings)
        self.text, self.held_out = text_of(40), text_of(8, seed=1)
        self.beginning: Beginning = beginning
        self.is_accelerated, self._rate = is_accelerated, rate

    def made_with(self) -> dict[str, Any]:
        return {"rate": self._rate}

    def begin(self) -> None:
        self.matrix, self.vector = nn.Parameter(torch.eye(SIZE)), nn.Parameter(torch.zeros(SIZE))

    def load(self, state: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        assert numbers == {"size": SIZE}
        self.matrix, self.vector = nn.Parameter(state["matrix"]), nn.Parameter(state["vector"])

    def state(self) -> dict[str, Tensor]:
        return {"matrix": self.matrix.detach(), "vector": self.vector.detach()}

    def numbers(self) -> dict[str, Any]:
        return {"size": SIZE}

    def parameters(self) -> list[nn.Parameter]:
        return [self.matrix, self.vector]

    def optimisers(self) -> list[torch.optim.Optimizer]:
        return [muon([self.matrix], self._rate), adamw([([self.vector], self._rate)])]

    def paces(self, done: float) -> Sequence[float]:
        return 1.0, 0.5

    def plan(self, step: int, places: Sequence[int]) -> Tensor | None:
        if step == 3:
            return None
        return self.counts([self.text[i] for i in places])

    def losses(self, plan: Tensor, done: float) -> StepLosses | None:
        errors = plan @ self.matrix.T + self.vector - 2 * plan
        parts = {"worst": errors.detach().abs().max(), "by_token": errors.detach().abs().mean(dim=0)}
        return StepLosses(errors.square().mean(), len(plan), parts)

    def counts(self, text: Sequence[Conversation]) -> Tensor:
        return torch.stack([torch.bincount(torch.from_numpy(own.tokens), minlength=SIZE).float() for own in text])

    def write_first(self, path: Path) -> None:
        self.write(path)

    def write(self, path: Path) -> None:
        save_tensors(path, self.state())
        save_tensors(path.with_suffix(".more.pt"), {"step": path.stem})

    def measure(self, path: Path) -> Counted:
        own, counts = load_tensors(path), self.counts(self.held_out)
        return Counted(float((counts @ own["matrix"].T + own["vector"] - 2 * counts).abs().mean()))

    def measure_in_full(self, path: Path, best: Counted) -> Counted:
        assert self.measure(path) == best
        return best

    def score(self, measured: Counted) -> float:
        return -measured.error

    def measured_of(self, entry: Mapping[str, Any]) -> Counted:
        return Counted(entry["error"])


class Stop(Exception):
    pass


def run(
    folder: Path, beginning: Beginning = "unmeasured", stop: int = 0, **given: Any
) -> tuple[Outcome[Counted], list[StepReport]]:
    reports: list[StepReport] = []

    def report(step: StepReport) -> None:
        reports.append(step)
        if step.step == stop:
            raise Stop

    return train(Counting(beginning, **{"steps": 12, "evaluations": 3} | given), folder, report), reports


def same(one: Path, other: Path) -> None:
    """Compare two runs' files and states, bit for bit."""
    assert {file.name for file in one.iterdir()} == {file.name for file in other.iterdir()}
    for name in ("counter.pt", "counter.more.pt"):
        assert str(load_tensors(one / name)) == str(load_tensors(other / name))
    a, b = load_state(one / STATE, {}), load_state(other / STATE, {})
    assert all(torch.equal(x, b.network[name]) for name, x in a.network.items())
    assert str(a.optimisers) == str(b.optimisers)
    assert [entry | {"seconds": 0} for entry in a.log] == [entry | {"seconds": 0} for entry in b.log]
    assert (a.step, a.num_evaluated, a.best) == (b.step, b.num_evaluated, b.best)


def test_it_learns_and_tells_each_step(tmp_path: Path) -> None:
    found, reports = run(tmp_path, "compared")
    assert found.before is not None
    assert found.measured.error < 0.7 * found.before.error
    assert (found.score, found.score_before) == (-found.measured.error, -found.before.error)
    assert [step.step for step in reports] == list(range(1, 13))
    assert [step.step for step in reports if step.measured is not None] == [4, 8, 12]
    assert reports[-1].measured == {"error": -found.score, "score": found.score}
    line = reports[0].as_dict()
    assert list(line) == [
        "worst", "by_token", "step", "seconds", "done", "loss", "learning_rate", "positions", "measured"
    ]  # fmt: skip
    assert len(line["by_token"]) == SIZE
    assert line["worst"] >= max(line["by_token"])
    assert [reports[i].learning_rate for i in (0, 1, 5)] == [0.1, 0.2, 0.2]
    assert 0 < reports[-1].learning_rate < 0.05


def test_a_step_without_anything_to_learn_is_told_and_skipped(tmp_path: Path) -> None:
    _, reports = run(tmp_path)
    assert [(step.positions > 0, step.loss is None) for step in reports[2:5]] == [
        (True, False), (False, True), (True, False)
    ]  # fmt: skip
    assert reports[3].in_words().startswith("step 4, nothing to learn, score -")


@pytest.mark.parametrize(("beginning", "is_accelerated"), [("unmeasured", False), ("kept", False), ("kept", True)])
def test_a_run_that_is_stopped_goes_on_bit_for_bit(tmp_path: Path, beginning: Beginning, is_accelerated: bool) -> None:
    whole, _ = run(tmp_path / "whole", beginning, is_accelerated=is_accelerated)
    for step in (1, 3, 4, 5, 11):  # the fourth learns nothing, and is followed by an evaluation
        folder = tmp_path / str(step)
        with pytest.raises(Stop):
            run(folder, beginning, stop=step, is_accelerated=is_accelerated)
        parts, reports = run(folder, beginning, is_accelerated=is_accelerated)
        assert [own.step for own in reports] == list(range(step + 1, 13))
        assert (parts.measured, parts.before) == (whole.measured, whole.before)
        same(folder, tmp_path / "whole")
    assert run(tmp_path / "whole", beginning)[1] == []


@pytest.mark.parametrize("number", [1, 2, 6])
def test_a_run_that_is_killed_while_it_saves_goes_on_bit_for_bit(tmp_path: Path, number: int) -> None:
    """Kill -9 from within, with half a checkpoint written, and a result that no checkpoint names."""
    code = """
        import os, signal, sys
        from pathlib import Path
        import torch
        from outpace.train import trainer
        from tests.unit.train.test_trainer import run

        torch.set_num_threads(1)
        folder, saves, save = Path(sys.argv[1]), [], trainer.save_state

        def dying(path, state):
            saves.append(state)
            if len(saves) == int(sys.argv[2]):
                path.with_name("state.pt.new").write_bytes(b"half")
                path.with_name("step-0000099.pt").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            save(path, state)

        trainer.save_state = dying
        run(folder, "kept")
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "run"), str(number)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(["src", "."])}
    assert subprocess.run(command, cwd=Path(__file__).parents[3], env=env).returncode == -signal.SIGKILL
    run(tmp_path / "run", "kept")
    run(tmp_path / "whole", "kept")
    same(tmp_path / "run", tmp_path / "whole")


def test_losses_read_late_are_those_read_at_once(tmp_path: Path) -> None:
    """As from an accelerator, with plans made ahead: evaluations and the end bring what is not read yet."""
    (one, exact), (other, late) = (
        run(tmp_path / str(ahead), is_accelerated=ahead, save_every_s=1e9) for ahead in (False, True)
    )
    assert [replace(step, seconds=0.0) for step in exact] == [replace(step, seconds=0.0) for step in late]
    assert one.measured == other.measured


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the next measurements find."""
    given: list[float] = []
    monkeypatch.setattr(Counting, "measure", lambda self, path: Counted(-given.pop(0)))
    monkeypatch.setattr(Counting, "measure_in_full", lambda self, path, best: best)
    return given


@pytest.mark.parametrize(
    ("beginning", "found", "best"),
    [
        ("unmeasured", [1.0, 3.0, 2.0], "step-0000008"),
        ("compared", [9.0, 1.0, 3.0, 2.0], "step-0000008"),
        ("kept", [9.0, 1.0, 3.0, 2.0], "step-0000000"),
        ("kept", [2.0, 2.0, 3.0, 3.0], "step-0000008"),
    ],
)
def test_the_best_result_is_kept_with_its_own_files_and_no_other(
    tmp_path: Path, scores: list[float], beginning: Beginning, found: list[float], best: str
) -> None:
    scores += found
    outcome, _ = run(tmp_path, beginning)
    assert outcome.score == (max(found) if beginning == "kept" else max(found[-3:]))
    assert outcome.score_before == (None if beginning == "unmeasured" else found[0])
    names = ["counter.more.pt", "counter.pt", "state.pt", f"{best}.more.pt", f"{best}.pt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert load_tensors(tmp_path / "counter.more.pt") == {"step": best}


def test_a_budget_in_seconds_ends_a_run_by_the_clock(tmp_path: Path) -> None:
    """A clock that moves by a second each time it is asked: a step takes one."""
    now, reports = iter(range(10**6)), []
    objective = Counting(budget_s=8.0, evaluations=2)
    outcome = train(objective, tmp_path, reports.append, lambda: float(next(now)))
    assert outcome.steps == len(reports) == outcome.seconds == 8
    assert [step.step for step in reports if step.measured is not None] == [4, 8]
    assert reports[-1].learning_rate < reports[4].learning_rate


def test_a_folder_of_another_run_is_refused_with_the_difference(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(UsageError, match="begun with seed = 0, now it is 1"):
        run(tmp_path, seed=1)
    with pytest.raises(UsageError, match=r"begun with rate = 0.2, now it is 0.5"):
        run(tmp_path, rate=0.5)
    other = Counting(steps=12, evaluations=3)
    other.text = other.text[:-1]
    with pytest.raises(UsageError, match="begun with text ="):
        train(other, tmp_path)


@pytest.mark.parametrize("is_accelerated", [False, True])
def test_a_loss_that_is_no_number_is_found_before_anything_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_accelerated: bool
) -> None:
    losses = Counting.losses
    calls: list[float] = []

    def spoiled(self: Counting, plan: Tensor, done: float) -> StepLosses | None:
        calls.append(done)
        found = losses(self, plan, done)
        assert found is not None
        return replace(found, total=found.total * (math.nan if len(calls) == 2 else 1))

    monkeypatch.setattr(Counting, "losses", spoiled)
    with pytest.raises(OutpaceError, match=r"the loss of step 2 is nan.*diverged.*its peak is 0.2"):
        run(tmp_path, is_accelerated=is_accelerated, save_every_s=1e9)
    assert not list(tmp_path.iterdir())


def test_a_result_that_disappears_is_no_silent_success(tmp_path: Path) -> None:
    run(tmp_path)
    for path in tmp_path.glob("step-*"):
        path.unlink()
    with pytest.raises(FileNotFoundError):
        run(tmp_path)
