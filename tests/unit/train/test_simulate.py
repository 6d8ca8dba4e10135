from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

import outpace
from outpace import LanguageModel
from outpace.train.build import fresh_network
from outpace.train.drafting import Drafted
from outpace.train.export import read_network
from outpace.train.settings import TrainSettings
from outpace.train.simulate import Row, Simulation, num_steps, simulate
from outpace.train.target import EngineTarget
from outpace.train.text.corpus import Conversation
from outpace.train.trainer import Outcome
from tests.training import written_by


def test_the_steps_of_a_walk_that_a_hand_can_take() -> None:
    """Seven tokens after the prompt, the first of them by step 1; a step writes what was right and one more."""
    assert num_steps(np.array([2, 1, 0, 0, 3, 1])) == 1 + 3  # 3, 1, 4 tokens: one more than are left
    assert num_steps(np.array([1, 1, 0, 0, 1, 1])) == 1 + 4  # 2, 1, 1, 2
    assert num_steps(np.zeros(6, np.int64)) == 7
    assert num_steps(np.full(6, 3)) == 3
    assert num_steps(np.zeros(0, np.int64)) == 1


def test_the_mean_is_over_kinds() -> None:
    rows = (
        Row("a", False, 9, 99, {1: 1.0, 4: 2.0}),
        Row("b", False, 1, 9, {1: 2.0, 4: 4.0}),
        Row("b", True, 1, 9, {1: 1.0, 4: 1.5}),
    )
    found = Simulation(rows)
    assert found.mean(4, sampled=False) == 3.0
    assert found.mean(1) == pytest.approx(4 / 3)
    assert found.mean(4, sampled=True) == 1.5
    assert Simulation(()).mean() == 1.0


def test_an_untrained_drafter_brings_next_to_nothing(target: EngineTarget, text: list[Conversation]) -> None:
    network = fresh_network("eagle", target, text, TrainSettings(steps=1, head_rows=320, num_fixed=240))
    found = simulate(network, target, text[:24], min_confidence=0.0)
    assert 1.0 <= found.mean(4) < 1.1


def test_rows_of_the_head_behind_the_fixed_ones_count_once_their_token_is_there(
    trained: Outcome[Drafted], target: EngineTarget, held_out: list[Conversation]
) -> None:
    network = read_network(trained.path, "eagle", target)
    whole = simulate(network, target, held_out).mean(4)
    network.num_fixed = 1
    few = simulate(network, target, held_out).mean(4)
    repeated = [
        replace(
            own, tokens=np.concatenate([np.arange(320, dtype=np.int32), own.tokens]), num_prompt=320 + own.num_prompt
        )
        for own in held_out[:4]
    ]
    network.num_fixed = 320
    all_rows = simulate(network, target, repeated, min_confidence=0.0)
    network.num_fixed = 1
    all_seen = simulate(network, target, repeated, min_confidence=0.0)
    assert 1.0 < few < whole - 0.2
    assert all_seen == all_rows  # every token is in the prompt


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["eagle", "medusa", pytest.param("block", marks=pytest.mark.slow)])
def test_the_simulation_takes_the_steps_of_the_real_loop(
    lm: LanguageModel,
    trained_of: Callable[[str], Outcome[Drafted]],
    target: EngineTarget,
    kind: str,
    temperature: float,
) -> None:
    """Drafts of 4, text by text, sampled ones with the target's noise; 8-bit products may turn a rare guess around."""
    path = trained_of(kind).path
    real = outpace.load(lm.path, threads=1, drafter=path)
    texts = written_by(lm, 12, 40, seed=5, temperature=temperature)
    network = read_network(path, kind, target)
    expected, found = 0.0, 0
    for own in texts:
        (row,) = simulate(network, target, [own], budgets=[4]).rows
        expected += 40 / row.chains[4]
        options = {"max_new_tokens": 40, "ignore_eos": True, "temperature": temperature, "seed": own.seed}
        result = real.generate(own.tokens[: own.num_prompt].tolist(), strategy=kind, max_draft=4, **options)
        assert list(result.tokens) == own.tokens[own.num_prompt :].tolist()
        found += result.stats.steps
    assert found == pytest.approx(expected, rel=0.05)
    assert found < 0.8 * 40 * 12
