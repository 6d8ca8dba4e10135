from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from outpace import LanguageModel
from outpace.errors import UsageError
from outpace.train import drafting as module
from outpace.train.batch import Plan, look
from outpace.train.build import fresh_network
from outpace.train.drafting import Drafted
from outpace.train.export import read_network
from outpace.train.losses import draft_loss, target_probs
from outpace.train.settings import TrainSettings
from outpace.train.simulate import num_steps, simulate
from outpace.train.state import load_state
from outpace.train.target import EngineTarget, FrozenTarget
from outpace.train.text.corpus import Conversation
from outpace.train.torch_target import TorchTarget
from outpace.train.trainer import STATE, Outcome, StepReport
from tests.training import Confused
from tests.unit.train.conftest import FAST, train_drafter


def by_last_token(own: Conversation) -> int:
    """Return the steps of a chain of 4 that looks up what followed the last token's latest occurrence."""
    tokens = own.tokens.tolist()
    hits = np.zeros((len(tokens) - 1 - own.num_prompt, 4), np.bool_)
    for row, anchor in enumerate(range(own.num_prompt, len(tokens) - 1)):
        before = [i for i in range(anchor) if tokens[i] == tokens[anchor]]
        if before:
            guesses = (tokens[before[-1] + 1 : anchor + 1] * 4)[:4]
            for k, guess in enumerate(guesses):
                hits[row, k] = anchor + 1 + k < len(tokens) and tokens[anchor + 1 + k] == guess
    return num_steps(np.cumprod(hits, axis=1).sum(axis=1))


def test_a_tiny_drafter_learns_far_more_than_repetition_gives(
    trained: Outcome[Drafted], held_out: list[Conversation]
) -> None:
    tokens = sum(len(own.tokens) - own.num_prompt for own in held_out)
    floor = tokens / sum(map(by_last_token, held_out))
    score = trained.measured.simulation.mean(4)
    assert floor < 1.5
    assert score > floor + 0.5
    assert score == trained.score == max(entry["score"] for entry in trained.log)
    assert trained.log[-1]["step"] == trained.steps == 80


def test_shuffled_labels_teach_nothing(
    target: EngineTarget,
    text: list[Conversation],
    held_out: list[Conversation],
    trained: Outcome[Drafted],
    tmp_path: Path,
) -> None:
    """The negative control: the same run on the labels of other positions, measured by the true ones.

    Drafts of one token, without a bar: what is left is the chance of the most frequent token.
    """
    settings, confused = TrainSettings(steps=24, evaluations=1, **FAST), cast(FrozenTarget, Confused(target))
    path = train_drafter("eagle", settings, text, held_out, confused, tmp_path).path
    network = read_network(path, "eagle", target)
    score = simulate(network, target, held_out, budgets=(1,), min_confidence=0.0).mean(1)
    tokens = np.concatenate([own.tokens[own.num_prompt :] for own in held_out])
    chance = np.bincount(tokens).max() / len(tokens)
    assert score < 1 + chance + 0.03 < trained.measured.simulation.mean(1) - 0.3


def short(**changes: Any) -> TrainSettings:
    return replace(TrainSettings(steps=8, evaluations=2, **FAST), **changes)


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def whole(
    target: EngineTarget,
    text: list[Conversation],
    held_out: list[Conversation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Outcome[Drafted]:
    """A short run that nobody interrupts."""
    return train_drafter(
        "eagle", short(save_every_s=0.0), text[:64], held_out[:4], target, tmp_path_factory.mktemp("whole")
    )


@pytest.mark.parametrize("at", [3, 4])
def test_a_run_that_is_stopped_goes_on_bit_for_bit(
    target: EngineTarget,
    text: list[Conversation],
    held_out: list[Conversation],
    whole: Outcome[Drafted],
    tmp_path: Path,
    at: int,
) -> None:
    """Before and after its first evaluation."""

    def stop(step: StepReport) -> None:
        if step.step == at:
            raise Stop

    settings = short(save_every_s=0.0)  # a checkpoint after every step
    with pytest.raises(Stop):
        train_drafter("eagle", settings, text[:64], held_out[:4], target, tmp_path / "parts", report=stop)
    seen: list[int] = []
    parts = train_drafter(
        "eagle",
        settings,
        text[:64],
        held_out[:4],
        target,
        tmp_path / "parts",
        report=lambda step: seen.append(step.step),
    )
    assert seen == list(range(at + 1, 9))
    assert parts.path.read_bytes() == whole.path.read_bytes()
    assert [entry["score"] for entry in parts.log] == [entry["score"] for entry in whole.log]
    one, other = (load_state(outcome.path.with_name(STATE), {}) for outcome in (whole, parts))
    assert all(torch.equal(one.network[name], other.network[name]) for name in one.network)
    assert str(one.optimisers) == str(other.optimisers)


def test_a_run_that_was_killed_goes_on(
    target: EngineTarget,
    text: list[Conversation],
    held_out: list[Conversation],
    whole: Outcome[Drafted],
    tmp_path: Path,
) -> None:
    """Kill -9 in the middle of it, from within: the process has no chance to tidy up."""
    script = """
        import os, signal, sys
        from pathlib import Path
        import torch
        from outpace import load
        from outpace.train.settings import TrainSettings
        from outpace.train.target import EngineTarget, FrozenTarget
        from tests.training import written_by
        from tests.unit.train.conftest import FAST, train_drafter

        torch.set_num_threads(1)
        lm = load(sys.argv[1], threads=1)
        text, held_out = written_by(lm, 64, seed=0, temperature=1.0), written_by(lm, 4, seed=1, temperature=1.0)
        settings = TrainSettings(steps=8, evaluations=2, **(FAST | {"save_every_s": 0.0}))

        def kill(step):
            if step.step == 6:
                (Path(sys.argv[2]) / "step-0000099.gguf").touch()
                os.kill(os.getpid(), signal.SIGKILL)

        own = EngineTarget(lm, "Tiny")
        train_drafter("eagle", settings, text, held_out, own, Path(sys.argv[2]), report=kill)
    """
    path = target._model.path
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), path, tmp_path / "run"], cwd=Path(__file__).parents[3]
    )
    assert done.returncode == -signal.SIGKILL
    settings = short(save_every_s=0.0)
    killed = train_drafter("eagle", settings, text[:64], held_out[:4], target, tmp_path / "run")
    assert killed.path.read_bytes() == whole.path.read_bytes()
    names = {file.name for file in (tmp_path / "run").iterdir()}
    assert names == {file.name for file in whole.path.parent.iterdir()}, "what a kill left behind is gone"


def test_a_drafter_that_is_continued_never_ends_worse_than_it_began(
    target: EngineTarget,
    text: list[Conversation],
    held_out: list[Conversation],
    trained: Outcome[Drafted],
    tmp_path: Path,
) -> None:
    """Learning from other positions' labels at high rates spoils it: then the start itself is the outcome."""
    settings = TrainSettings(steps=10, evaluations=2, peak=1.0, **FAST)
    confused = cast(FrozenTarget, Confused(target))
    worse = train_drafter("eagle", settings, text, held_out, confused, tmp_path / "worse", trained.path)
    assert worse.score_before is not None
    assert worse.score == worse.score_before > worse.log[-1]["score"]
    assert worse.path.read_bytes() == trained.path.read_bytes()
    better = train_drafter(
        "eagle", replace(settings, peak=None), text, held_out, target, tmp_path / "better", trained.path
    )
    assert better.score_before == trained.score <= better.score


@pytest.mark.parametrize(("kind", "message"), [("eagel", "did you mean 'eagle'"), ("eagle", "no held-out text")])
def test_what_cannot_work_is_refused(
    target: EngineTarget, text: list[Conversation], tmp_path: Path, kind: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train_drafter(kind, short(), text, [], target, tmp_path)


@pytest.mark.parametrize("kind", ["eagle", "medusa", "block"])
def test_the_path_of_an_accelerator_learns_the_same(
    lm: LanguageModel,
    text: list[Conversation],
    held_out: list[Conversation],
    tmp_path: Path,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the CPU, but in bfloat16, with plans made ahead, and losses read some steps later."""
    settings = short(steps=20, evaluations=2)
    runs = []
    for is_accelerated in (False, True):
        monkeypatch.setattr(module, "is_accelerator", lambda device, answer=is_accelerated: answer)
        target = TorchTarget(lm, torch.device("cpu"), torch.bfloat16 if is_accelerated else torch.float32, "Tiny")
        seen: list[StepReport] = []
        outcome = train_drafter(
            kind, settings, text, held_out[:4], target, tmp_path / str(is_accelerated), report=seen.append
        )
        assert [step.step for step in seen] == list(range(1, 21))
        assert [step.step for step in seen if step.measured is not None] == [10, 20]
        runs.append((outcome, seen))
    (_, exact), (_, rough) = runs
    for one, other in zip(exact, rough, strict=True):
        assert (one.positions, one.learning_rate) == (other.positions, other.learning_rate)
        assert other.loss == pytest.approx(one.loss, rel=0.05)
    assert rough[-1].loss < 0.9 * rough[0].loss


class _Elsewhere:
    """A target on a device that this machine need not have: shapes and places are real, numbers are not."""

    def __init__(self, real: EngineTarget, device: torch.device) -> None:
        self.config, self.identity, self.device, self.rope_scale = real.config, real.identity, device, real.rope_scale
        self.embedding, self.unembedding, self.final_norm, self.inv_freq = (
            x.to(device) for x in (real.embedding, real.unembedding, real.final_norm, real.inv_freq)
        )

    def padded(self, tokens: Tensor, lengths: Sequence[int], taps: Sequence[int]) -> dict[int, Tensor]:
        assert tokens.device == self.device
        return {tap: torch.empty(*tokens.shape, self.config.width, device=self.device) for tap in taps}


@pytest.mark.parametrize("kind", ["eagle", "medusa", "block"])
def test_nothing_of_a_step_stays_behind_on_the_host(
    target: EngineTarget, text: list[Conversation], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the device `meta`, which computes nothing, knows no autocast, and refuses most mixtures with the host's."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    monkeypatch.setattr(torch, "autocast", lambda *given, **options: nullcontext())
    device = torch.device("meta")
    settings = TrainSettings(steps=1, head_rows=100, num_fixed=50)
    elsewhere: Any = _Elsewhere(target, device)
    network = fresh_network(kind, elsewhere, text[:8], settings)
    plan = Plan.of(text[:8], network.num_depths, np.random.default_rng(0), network.share, is_aligned=True)
    assert plan is not None
    heads = torch.tensor(network.head_tokens, device=device)
    batch = look(plan, elsewhere, network.taps)
    probs = target_probs(elsewhere, batch.final, heads, torch.bfloat16)
    losses = draft_loss(network, batch, probs, heads)
    losses.total.backward()  # type: ignore[no-untyped-call]
    optimisers = module.optimisers_of(network, settings)
    for optimiser in optimisers:
        optimiser.step()
    moments = [x for optimiser in optimisers for own in optimiser.state.values() for x in own.values() if x.ndim]
    assert moments
    for x in (*network.parameters(), *moments, losses.total, *losses.by_depth, *losses.accuracy):
        assert x.device == device
