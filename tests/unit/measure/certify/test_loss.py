from __future__ import annotations

import math

import numpy as np
import pytest

from outpace.cache import Cache
from outpace.measure.certify.loss import LIMIT, measure_loss
from outpace.measure.scoring import score, softmax
from outpace.models import Transformer
from outpace.runner import Runner
from outpace.types import KVFormat
from tests.constant_keys import with_constant_keys, without_factors
from tests.decoding import tiny_ops, tiny_runner

TEXTS = [[5, 6, 7, *range(20, 90)], [8, 9]]


def test_a_mode_that_is_the_target_loses_nothing() -> None:
    runner = tiny_runner()
    loss = measure_loss("a", "b", runner, runner, TEXTS)
    assert (loss.positions, loss.divergence, loss.tv_mean, loss.tv_max, loss.top1) == (73, 0.0, 0.0, 0.0, 1.0)
    assert loss.perplexity == loss.own_perplexity > 1
    assert loss.change == 0.0
    assert not loss.is_large


def test_the_measures_are_their_formulas_at_every_token() -> None:
    target, other = tiny_runner(), tiny_runner(seed=1)
    loss = measure_loss("other", "target", other, target, TEXTS)
    probs: list[list[np.ndarray[tuple[int], np.dtype[np.float64]]]] = [
        [
            softmax(row)[0]
            for text in TEXTS
            for i in range(1, len(text))
            for row in score(runner, text[:i], [text[i]], 1)
        ]
        for runner in (target, other)
    ]
    own = [token for text in TEXTS for token in text[1:]]
    surprise, own_surprise = (
        -np.mean([np.log(p[token]) for p, token in zip(rows, own, strict=True)]) for rows in (probs[1], probs[0])
    )
    divergences = [float((p * np.log(p / q)).sum()) for p, q in zip(*probs, strict=True)]
    assert loss.divergence == pytest.approx(np.mean(divergences), rel=1e-4)
    assert loss.divergence_error == pytest.approx(np.std(divergences) / math.sqrt(73), rel=1e-4)
    assert loss.perplexity == pytest.approx(math.exp(surprise), rel=1e-4)
    assert loss.own_perplexity == pytest.approx(math.exp(own_surprise), rel=1e-4)
    assert loss.change == pytest.approx(math.exp(surprise - own_surprise) - 1, rel=1e-3)
    assert loss.tv_mean == pytest.approx(
        np.mean([np.abs(p - q).sum() / 2 for p, q in zip(*probs, strict=True)]), rel=1e-4
    )
    assert loss.is_large


def test_the_loss_of_int8_with_a_large_key_bias_is_found_and_without_the_fault_it_is_small() -> None:
    """What a certificate did not see once: qwen2's keys in int8."""
    ops, text = tiny_ops(), np.random.default_rng(3).integers(0, 97, 400).tolist()
    model = with_constant_keys(ops)
    target = runner_of(model, "f32")
    faulty = measure_loss("int8", "f32", runner_of(without_factors(model), "int8"), target, [text])
    healthy = measure_loss("int8", "f32", runner_of(model, "int8"), target, [text])
    assert faulty.is_large
    assert not healthy.is_large
    assert faulty.divergence - 3 * faulty.divergence_error > LIMIT > healthy.divergence + 3 * healthy.divergence_error


def runner_of(model: Transformer, kv: KVFormat) -> Runner:
    cache = Cache(model.ops, model.spec(kv), capacity=64, max_window=model.max_window)
    return Runner(model, model.ops, cache, None)
