from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import outpace
from outpace import LanguageModel
from outpace.train.batch import Plan
from outpace.train.build import fresh_network
from outpace.train.drafting import Drafted
from outpace.train.export import read_network
from outpace.train.joint import tuned as module
from outpace.train.joint.files import beside
from outpace.train.joint.tuned import TunedDrafting
from outpace.train.settings import TrainSettings
from outpace.train.simulate import simulate
from outpace.train.state import load_state
from outpace.train.target import EngineTarget, FrozenTarget
from outpace.train.text.corpus import Conversation
from outpace.train.trainer import STATE, Outcome, StepReport, train
from outpace.weights.drafter import open_drafter
from tests.unit.train.joint.conftest import trained_with, tuned_of

Found = tuple[torch.Tensor, Any]
SHORT = {"steps": 8, "evaluations": 2, "save_every_s": 0.0}


def with_adapter(lm: LanguageModel, outcome: Outcome[Drafted], **options: Any) -> LanguageModel:
    return outpace.load(lm.path, threads=1, drafter=outcome.path, adapter=beside(outcome.path), **options)


def test_heads_of_a_target_that_is_tuned_with_them_guess_better(
    joint: Outcome[Drafted], trained_of: Callable[[str], Outcome[Drafted]]
) -> None:
    """As many steps over the same text; the price is measured, and the target is still nearly the original."""
    assert joint.measured.divergence is not None
    assert joint.measured.simulation.mean(4) > trained_of("medusa").measured.simulation.mean(4) + 0.1
    assert 0.8 < joint.measured.divergence.top1 < 1
    assert joint.measured.divergence.perplexity > joint.measured.divergence.original_perplexity
    assert joint.score == joint.measured.simulation.mean(4) * joint.measured.divergence.top1
    assert joint.log[-1]["divergence"]["top1"] == joint.measured.divergence.top1


def test_a_target_that_may_not_move_gains_nothing(
    lm: LanguageModel,
    text: list[Conversation],
    held_out: list[Conversation],
    joint: Outcome[Drafted],
    trained_of: Callable[[str], Outcome[Drafted]],
    tmp_path: Path,
) -> None:
    """The control of the above: the same run, but for the rate of the adapter, is Medusa-1."""
    still = trained_with(lm, text, held_out, tmp_path, rate=1e-7)
    assert still.measured.divergence is not None
    assert still.measured.divergence.top1 > 0.995
    assert still.measured.simulation.mean(4) == pytest.approx(
        trained_of("medusa").measured.simulation.mean(4), abs=0.05
    )


def test_shuffled_labels_teach_the_heads_nothing(
    lm: LanguageModel,
    text: list[Conversation],
    held_out: list[Conversation],
    joint: Outcome[Drafted],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The negative control: the heads' labels are those of other positions; drafts of one token, without a bar."""
    real = module.target_probs

    def shuffled(*given: Any) -> torch.Tensor:
        found = real(*given)
        return found[torch.randperm(len(found), generator=torch.Generator().manual_seed(0))]

    def score(outcome: Outcome[Drafted], target: FrozenTarget) -> float:
        network = read_network(outcome.path, "medusa", target)
        return simulate(network, target, held_out, budgets=(1,), min_confidence=0.0).mean(1)

    learned = score(joint, EngineTarget(with_adapter(lm, joint)))
    monkeypatch.setattr(module, "target_probs", shuffled)
    wrong = trained_with(lm, text, held_out, tmp_path, steps=24)
    tokens = np.concatenate([own.tokens[own.num_prompt :] for own in held_out])
    chance = np.bincount(tokens).max() / len(tokens)
    assert score(wrong, EngineTarget(with_adapter(lm, wrong))) < 1 + chance + 0.05 < learned - 0.2


def losses_of(own: TunedDrafting, text: list[Conversation], done: float = 0.9) -> tuple[Any, Any]:
    network = fresh_network("medusa", own.target, text, TrainSettings(steps=1, head_rows=100, num_fixed=50))
    with torch.no_grad():
        for x in network.parameters():
            x.add_(torch.randn(x.shape, generator=torch.Generator().manual_seed(2)) * 0.05)
    plan = Plan.of(text, network.num_depths)
    assert plan is not None
    own._take(network)
    return network, lambda: own.losses(plan, done)


@pytest.mark.parametrize("heads_weight", [0.2, 50.0])
def test_gradients_are_those_of_finite_differences(
    lm: LanguageModel, text: list[Conversation], heads_weight: float
) -> None:
    """Along a random direction in the adapter; with the large weight it is the heads' loss that flows through."""
    own = tuned_of(lm, heads_weight=heads_weight)
    learned = list(own.adapter.tensors().values())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for x in learned:
            x.add_(torch.randn(x.shape, generator=generator) * 0.1)
    _, losses = losses_of(own, text[:4])
    losses().total.backward()
    gradients = [x.grad for x in learned if x.grad is not None]
    direction = [x / torch.cat([y.flatten() for y in gradients]).norm() for x in gradients]
    slope = sum(float((x * d).sum()) for x, d in zip(gradients, direction, strict=True))
    found, step = [], 2e-3
    for sign in (1, -1):
        with torch.no_grad():
            for x, d in zip(learned, direction, strict=True):
                x.add_(d * step * sign)
            found.append(float(losses().total))
            for x, d in zip(learned, direction, strict=True):
                x.sub_(d * step * sign)
    assert slope > 0.01
    assert (found[0] - found[1]) / (2 * step) == pytest.approx(slope, rel=0.02)


def test_while_the_heads_are_alone_the_target_learns_nothing(lm: LanguageModel, text: list[Conversation]) -> None:
    own = tuned_of(lm, heads_first=0.5)
    network, losses = losses_of(own, text[:4], done=0.4)
    found = losses()
    found.total.backward()
    assert float(found.parts["divergence"]) == 0
    assert all(x.grad is None for x in own.adapter.tensors().values())
    assert all(x.grad is not None for x in network.parameters())


class Stop(Exception):
    pass


def short(
    folder: Path, lm: LanguageModel, text: list[Conversation], held_out: list[Conversation], stop: int
) -> Outcome[Drafted]:
    """Run eight steps, the first two of the heads alone; stop behind one of them (0: go to the end)."""

    def report(step: StepReport) -> None:
        if step.step == stop:
            raise Stop

    return train(tuned_of(lm, text, held_out, settings=SHORT), folder, report)


@pytest.fixture(scope="module")
def whole(
    lm: LanguageModel,
    text: list[Conversation],
    held_out: list[Conversation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Outcome[Drafted]:
    return short(tmp_path_factory.mktemp("whole"), lm, text[:64], held_out[:4], 0)


def same(one: Outcome[Drafted], other: Outcome[Drafted]) -> None:
    """Compare two runs' files and states, bit for bit."""
    assert one.path.read_bytes() == other.path.read_bytes()
    assert beside(one.path).read_bytes() == beside(other.path).read_bytes()
    a, b = (load_state(outcome.path.with_name(STATE), {}) for outcome in (one, other))
    assert any(name.startswith("adapter.") for name in a.network)
    assert all(torch.equal(a.network[name], b.network[name]) for name in {*a.network, *b.network})
    assert str(a.optimisers) == str(b.optimisers)
    assert {file.name for file in one.path.parent.iterdir()} == {file.name for file in other.path.parent.iterdir()}


@pytest.mark.parametrize("at", [2, 5])
def test_a_run_that_is_stopped_goes_on_bit_for_bit(
    lm: LanguageModel,
    text: list[Conversation],
    held_out: list[Conversation],
    whole: Outcome[Drafted],
    tmp_path: Path,
    at: int,
) -> None:
    """While the heads learn alone, and when the target learns too."""
    with pytest.raises(Stop):
        short(tmp_path, lm, text[:64], held_out[:4], at)
    same(short(tmp_path, lm, text[:64], held_out[:4], 0), whole)


def test_a_run_that_was_killed_goes_on(
    lm: LanguageModel, text: list[Conversation], held_out: list[Conversation], whole: Outcome[Drafted], tmp_path: Path
) -> None:
    script = """
        import os, signal, sys
        from pathlib import Path
        import torch
        from outpace import load
        from outpace.train.trainer import train
        from tests.training import written_by
        from tests.unit.train.joint.conftest import tuned_of
        from tests.unit.train.joint.test_tuned import SHORT

        torch.set_num_threads(1)
        lm, folder = load(sys.argv[1], threads=1), Path(sys.argv[2])
        text, held_out = written_by(lm, 64, seed=0, temperature=1.0), written_by(lm, 4, seed=1, temperature=1.0)

        def kill(step):
            if step.step == 6:
                os.kill(os.getpid(), signal.SIGKILL)

        train(tuned_of(lm, text, held_out, settings=SHORT), folder, kill)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), lm.path, tmp_path]
    assert subprocess.run(command, cwd=Path(__file__).parents[4]).returncode == -signal.SIGKILL
    same(short(tmp_path, lm, text[:64], held_out[:4], 0), whole)


@pytest.mark.parametrize("ops", ["native", "reference"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_drafter_is_lossless_with_the_tuned_target(
    lm: LanguageModel, joint: Outcome[Drafted], ops: str, temperature: float
) -> None:
    """Token by token what that target writes alone, alone and in a batch; and that is not what the original writes."""
    own = with_adapter(lm, joint, ops=ops)
    prompts = [[5, 9, 2], [40, 7], [11], [3, 3, 8, 1]]
    drawn: dict[str, Any] = {"max_new_tokens": 48, "seed": 4, "temperature": temperature, "ignore_eos": True}
    plain = [result.tokens for result in own.generate(prompts, strategy="none", **drawn)]
    drafted = own.generate(prompts, strategy="medusa", **drawn)
    assert [result.tokens for result in drafted] == plain
    assert [own.generate(prompt, strategy="medusa", **drawn).tokens for prompt in prompts] == plain
    assert sum(result.stats.steps for result in drafted) < 0.9 * sum(map(len, plain))
    assert [result.tokens for result in lm.generate(prompts, strategy="none", **drawn)] != plain


def test_the_drafter_names_the_tuned_target(lm: LanguageModel, joint: Outcome[Drafted]) -> None:
    own, file = with_adapter(lm, joint), open_drafter(joint.path)
    assert file.target_fingerprint == own.loaded.fingerprint.hex() != lm.loaded.fingerprint.hex()
    assert file.target_name == "Tiny, tuned by its adapter"


def test_the_engine_with_the_adapter_computes_the_tuned_targets_states(
    lm: LanguageModel, joint: Outcome[Drafted], held_out: list[Conversation]
) -> None:
    """On the reference ops, in float32 but for the cache's bfloat16."""
    own = tuned_of(lm)
    last = lm.config.num_layers
    engine = EngineTarget(with_adapter(lm, joint, ops="reference", kv="f32"))
    tokens = [held_out[0].tokens]
    with own.as_written(joint.path):
        expected = own.target.states(tokens, (last,))[last][0]
    found, before = engine.states(tokens, (last,))[last][0], own.target.states(tokens, (last,))[last][0]
    assert float((found - expected).norm() / expected.norm()) < 1e-3 < float((before - expected).norm() / before.norm())


def test_a_run_may_begin_with_heads_and_never_ends_worse(
    lm: LanguageModel,
    text: list[Conversation],
    held_out: list[Conversation],
    trained_of: Callable[[str], Outcome[Drafted]],
    tmp_path: Path,
) -> None:
    """At a rate that destroys the target, what it began with is the outcome: the original, under its heads."""
    start, settings = trained_of("medusa"), {"steps": 6, "evaluations": 2}
    own = tuned_of(lm, text, held_out, start.path, settings, rate=1.0, heads_first=0.0)
    found = train(own, tmp_path)
    assert found.measured.divergence is not None
    assert found.measured.divergence.top1 == 1
    assert found.score == found.score_before == pytest.approx(start.score, abs=0.03)
    assert found.log[-1]["score"] < found.score
