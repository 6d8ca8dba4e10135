from __future__ import annotations

import numpy as np
import pytest

from outpace import LanguageModel
from outpace.ops.sampling import SamplingRows
from outpace.train.build import fresh_network
from outpace.train.corpus import Conversation
from outpace.train.guesses import Guesses, Noise, guesses_of
from outpace.train.settings import TrainSettings
from outpace.train.target import EngineTarget
from outpace.types import SamplingParams


def test_rows_behind_the_fixed_ones_are_looked_at_once_their_token_is_there(
    target: EngineTarget, text: list[Conversation]
) -> None:
    network = fresh_network("eagle", target, text, TrainSettings(steps=1, head_rows=320, num_fixed=5))
    fixed, rest = network.head_tokens[:5], set(network.head_tokens[5:])
    for found in guesses_of(network, target, text[:3], 2):
        tokens = found.own.tokens
        assert found.columns.tolist() == [*fixed, *dict.fromkeys(t for t in tokens.tolist() if t in rest)]
        assert found.anchors.tolist() == list(range(found.own.num_prompt, len(tokens) - 1))
        for k in range(2):
            for anchor, row in zip(found.anchors, found.logits[k], strict=True):
                known = set(found.columns[np.isfinite(row)].tolist())
                assert known == set(fixed) | (rest & set(tokens[: anchor + 1].tolist()))


def test_every_conversation_that_can_be_drafted_comes_once(target: EngineTarget, text: list[Conversation]) -> None:
    network = fresh_network("medusa", target, text, TrainSettings(steps=1))
    short = Conversation(text[0].tokens[:5], 4, False, "x")
    found = [guesses.own for guesses in guesses_of(network, target, [short, *text[:9]], 1)]
    assert sorted(map(id, found)) == sorted(map(id, text[:9]))


def test_the_best_come_first_with_their_probabilities_and_equals_in_order() -> None:
    logits = np.log(np.array([[0.1, 0.4, 0.1, 0.4], [0.7, 0.1, 0.1, 0.1]], np.float32))
    own = Conversation(np.arange(4, dtype=np.int32), 1, False, "x")
    columns, chances = Guesses(own, np.array([1, 2]), np.array([9, 8, 7, 6]), [logits]).best(0, 3)
    assert columns.tolist() == [[1, 3, 0], [0, 1, 2]]
    assert chances == pytest.approx(np.array([[0.4, 0.4, 0.1], [0.7, 0.1, 0.1]]))


@pytest.mark.parametrize(("temperature", "min_p"), [(1.0, 0.0), (0.7, 0.2)])
def test_noise_is_what_the_engine_adds(lm: LanguageModel, temperature: float, min_p: float) -> None:
    """Against the ops' own sampling, the best four of each row."""
    ops, size = lm.runner.ops, lm.config.vocab_size
    logits = np.random.default_rng(0).standard_normal((20, size)).astype(np.float32) * 3
    params, seed, positions = SamplingParams(temperature=temperature, min_p=min_p), 2**63 + 5, np.arange(7, 27)
    rows = SamplingRows()
    rows.add(params, seed, 0, positions.tolist())
    expected = ops.sample(ops.array(logits), rows.build(), 4)
    own = Conversation(np.zeros(30, np.int32), 6, True, "x", temperature, min_p, seed)
    guesses = Guesses(own, positions - 1, np.arange(size), [logits])
    noise = Noise(own, size)
    found, _ = guesses.best(0, 4, noise)
    is_left = np.isfinite(np.take_along_axis(noise.scores(logits.astype(float), positions, np.arange(size)), found, 1))
    assert is_left[:, 0].all()
    assert is_left.all() == (min_p == 0)
    assert (found[is_left] == expected[is_left]).all()
