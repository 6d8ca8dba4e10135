from __future__ import annotations

import numpy as np
import pytest
import torch

from outpace import LanguageModel
from outpace.ops.sampling import SamplingRows
from outpace.train.build import fresh_network
from outpace.train.settings import TrainSettings
from outpace.train.target import EngineTarget
from outpace.train.text.corpus import Conversation
from outpace.train.views import View, views_of
from outpace.types import SamplingParams


def test_rows_behind_the_fixed_ones_are_looked_at_once_their_token_is_there(
    target: EngineTarget, text: list[Conversation]
) -> None:
    network = fresh_network("eagle", target, text, TrainSettings(steps=1, head_rows=320, num_fixed=5))
    fixed, rest = network.head_tokens[:5], set(network.head_tokens[5:])
    for _, views in views_of(network, target, text[:3]):
        for view in views:
            tokens = view.own.tokens
            assert view.columns.tolist() == [*fixed, *dict.fromkeys(t for t in tokens.tolist() if t in rest)]
            assert view.anchors.tolist() == list(range(view.own.num_prompt, len(tokens) - 1))
            logits = view.logits(torch.ones(len(view.anchors), target.config.width), view.anchors)
            for anchor, row in zip(view.anchors, logits, strict=True):
                known = set(view.columns[np.isfinite(row)].tolist())
                assert known == set(fixed) | (rest & set(tokens[: anchor + 1].tolist()))
                column = int(np.flatnonzero(np.isfinite(row))[-1])
                head_row = network.head[network.head_tokens.index(int(view.columns[column]))]
                assert row[column] == pytest.approx(float(head_row.sum().detach()), abs=1e-4)


def test_every_conversation_that_can_be_drafted_comes_once(target: EngineTarget, text: list[Conversation]) -> None:
    network = fresh_network("medusa", target, text, TrainSettings(steps=1))
    short = Conversation(text[0].tokens[:5], 4, False, "x")
    found = [view.own for _, views in views_of(network, target, [short, *text[:9]]) for view in views]
    assert sorted(map(id, found)) == sorted(map(id, text[:9]))


def a_view(lm: LanguageModel, target: EngineTarget, text: list[Conversation], own: Conversation) -> View:
    """Return a view whose columns are all tokens in the order of their ids."""
    network = fresh_network("eagle", target, text, TrainSettings(steps=1))
    network.head_tokens = tuple(range(lm.config.vocab_size))
    return View(own, network, lm.config.vocab_size)


def test_the_best_come_first_with_their_probabilities_and_equals_in_order(
    lm: LanguageModel, target: EngineTarget, text: list[Conversation]
) -> None:
    logits = np.full((2, lm.config.vocab_size), -np.inf)
    logits[:, :4] = np.log([[0.1, 0.4, 0.1, 0.4], [0.7, 0.1, 0.1, 0.1]])
    view = a_view(lm, target, text, Conversation(np.arange(4, dtype=np.int32), 1, False, "x"))
    best = view.best(logits, np.array([2, 3]), 3, has_noise=True)
    assert best.columns.tolist() == [[1, 3, 0], [0, 1, 2]]
    assert np.exp(best.logprobs) == pytest.approx(np.array([[0.4, 0.4, 0.1], [0.7, 0.1, 0.1]]))
    assert view.truth(1).tolist() == [2, 3]
    assert view.truth(2).tolist() == [3, -1]
    assert [view.budget(at, most) for at in (0, 1) for most in (0, 1, 9)] == [0, 1, 1, 0, 0, 0]


@pytest.mark.parametrize(("temperature", "min_p"), [(1.0, 0.0), (0.7, 0.2)])
def test_noise_is_what_the_engine_adds(
    lm: LanguageModel, target: EngineTarget, text: list[Conversation], temperature: float, min_p: float
) -> None:
    """Against the ops' own sampling, the best four of each row."""
    ops, size = lm.runner.ops, lm.config.vocab_size
    logits = np.random.default_rng(0).standard_normal((20, size)).astype(np.float32) * 3
    params, seed, positions = SamplingParams(temperature=temperature, min_p=min_p), 2**63 + 5, np.arange(7, 27)
    rows = SamplingRows()
    rows.add(params, seed, 0, positions.tolist())
    expected = ops.sample(ops.array(logits), rows.build(), 4)
    view = a_view(lm, target, text, Conversation(np.zeros(30, np.int32), 6, True, "x", temperature, min_p, seed))
    best = view.best(logits.astype(np.float64), positions, 4, has_noise=True)
    is_left = np.isfinite(best.scores)
    assert is_left[:, 0].all()
    assert is_left.all() == (min_p == 0)
    assert (best.columns[is_left] == expected[is_left]).all()
    without = view.best(logits.astype(np.float64), positions, 4, has_noise=False)
    assert without.columns[:, 0].tolist() == logits.argmax(axis=1).tolist()
