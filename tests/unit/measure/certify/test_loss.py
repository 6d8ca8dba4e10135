from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import outpace
from outpace.cache import Cache
from outpace.measure.certify.loss import LIMIT, Comparison, interval
from outpace.measure.scoring import score, softmax
from outpace.models import Transformer
from outpace.models.transformer import Block
from outpace.ops.protocol import Ops
from outpace.runner import Runner
from outpace.types import KVFormat
from tests.constant_keys import with_constant_keys, without_factors
from tests.decoding import tiny_ops, tiny_runner

TEXTS = [[5, 6, 7, *range(20, 90)], [8, 9]]


def test_a_mode_that_is_the_target_loses_nothing() -> None:
    runner = tiny_runner()
    loss = Comparison(runner, TEXTS).measure("a", "b", runner)
    assert (loss.positions, loss.divergence, loss.tv_mean, loss.tv_max, loss.top1) == (73, 0.0, 0.0, 0.0, 1.0)
    assert loss.floor > 0
    assert loss.cost == -loss.floor
    assert loss.finding == "none measurable"


def test_the_measures_are_their_formulas_at_every_token() -> None:
    target, other = tiny_runner(), tiny_runner(seed=1)
    loss = Comparison(target, TEXTS).measure("other", "target", other)
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
    surprise = -np.mean([np.log(p[token]) for p, token in zip(probs[0], own, strict=True)])
    divergences = np.array([float((p * np.log(p / q)).sum()) for p, q in zip(*probs, strict=True)])
    low, high = interval(divergences)
    assert loss.divergence == pytest.approx(divergences.mean(), rel=1e-4)
    assert loss.perplexity == pytest.approx(math.exp(surprise), rel=1e-4)
    assert loss.tv_mean == pytest.approx(
        np.mean([np.abs(p - q).sum() / 2 for p, q in zip(*probs, strict=True)]), rel=1e-4
    )
    assert loss.floor < 1e-6  # the reference rounds no activation
    assert (loss.cost_low, loss.cost_high) == (pytest.approx(low, rel=1e-3), pytest.approx(high, rel=1e-3))
    assert loss.finding == "large loss"


def test_the_interval_holds_the_mean_of_what_depends_on_its_neighbours_as_often_as_it_says() -> None:
    """Odds of a false alarm: 3e-5 that fewer than 905 of 1,000 hold it, were it 95 % (batches are not quite free)."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(1000):
        noise = rng.standard_normal(323)
        low, high = interval(noise[:-3] + noise[1:-2] + noise[2:-1] + noise[3:])  # neighbours share three of four
        held += low <= 0 <= high
    assert 905 < held < 980
    assert interval(np.ones(31)) == (-math.inf, math.inf)  # one batch says nothing of its spread


def test_a_floor_as_large_as_the_divergence_is_no_loss_and_the_verdict_follows_the_interval() -> None:
    runner = tiny_runner()
    loss = Comparison(runner, TEXTS).measure("a", "b", runner)
    high = LIMIT + 0.004
    for divergence, floor, low, finding in (
        (0.0045, 0.0044, -0.0002, "none measurable"),
        (0.0060, 0.0040, 0.0012, "loss"),
        (0.0200, 0.0040, 0.0120, "large loss"),
    ):
        told = replace(loss, divergence=divergence, floor=floor, cost_low=low, cost_high=high)
        assert told.finding == finding


def test_the_loss_of_int8_with_a_large_key_bias_is_found_and_without_the_fault_it_is_small() -> None:
    """What a certificate did not see once: qwen2's keys in int8."""
    ops, text = tiny_ops(), np.random.default_rng(3).integers(0, 97, 400).tolist()
    model = with_constant_keys(ops)
    comparison = Comparison(runner_of(model, ops, "f32"), [text])
    faulty = comparison.measure("int8", "f32", runner_of(without_factors(model), ops, "int8"))
    healthy = comparison.measure("int8", "f32", runner_of(model, ops, "int8"))
    assert faulty.finding == "large loss"
    assert healthy.finding != "large loss"
    assert faulty.cost_low > LIMIT > healthy.cost_high


def test_a_cache_that_costs_2_percent_is_called_so_and_bf16_is_not(default_model_path: Path) -> None:
    """On native ops, whose rounding of activations alone makes 0.004 nats: the format is made worse on purpose.

    Keys that are stored 12 % too small stand for a bad format.
    """
    lm = outpace.load(default_model_path, kv="f32", cache_tokens=1024)
    prompt = lm.tokenizer.encode("The keeper of the lighthouse had written in the same book for thirty years.")
    written = lm.generate(prompt, strategy="none", temperature=1.0, seed=0, ignore_eos=True, max_new_tokens=220)
    model, ops = lm.runner.model, lm.runner.ops
    comparison = Comparison(lm.runner, [[*prompt, *written.tokens]])
    worse = comparison.measure("worse", "f32", runner_of(with_small_keys(model, ops, 0.88), ops, "f32"))
    bf16 = comparison.measure("bf16", "f32", runner_of(model, ops, "bf16"))
    assert 0.01 < worse.cost < 0.04
    assert worse.finding == "large loss"
    assert bf16.finding != "large loss"
    assert bf16.cost < LIMIT / 2
    assert 0.001 < bf16.floor < 0.01


def with_small_keys(model: Transformer, ops: Ops, factor: float) -> Transformer:
    """Return the same network as if all keys were stored too small."""

    def changed(block: Block) -> Block:
        scale = block.parts.scale or block.parts.head_width**-0.5
        parts = replace(block.parts, scale=scale * factor)
        return Block(parts, ops.layer(parts), parts.is_plain)

    return replace(model, layers=tuple(map(changed, model.layers)))


def runner_of(model: Transformer, ops: Ops, kv: KVFormat) -> Runner:
    cache = Cache(ops, model.spec(kv), capacity=64, max_window=model.max_window)
    return Runner(model, ops, cache, None)
