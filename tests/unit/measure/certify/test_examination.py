from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from outpace.api import LanguageModel
from outpace.api.strategies import STRATEGIES, TRAINED
from outpace.measure.certify import Certificate, certify
from outpace.types.tree import DraftTree
from tests.unit.measure.certify.conftest import PROMPTS, SMALL


def test_every_strategy_meets_every_batch_cache_and_sampling(certificate: Certificate) -> None:
    cases = {(c.strategy, c.batch, c.kv, c.prefix, c.sampling) for c in (run.case for run in certificate.identity)}
    expected = {
        (strategy, batch, kv, prefix, sampling)
        for strategy in STRATEGIES
        if strategy not in ("none", *TRAINED)  # this model has no trained drafter
        for batch in (1, 2)
        for kv in ("f32", "bf16", "int8")
        for prefix in (("fresh",) if strategy == "recompute" else ("fresh", "cached"))
        for sampling in ("greedy", "sampled")
    }
    assert cases == expected


def test_progress_is_reported_before_every_call_and_ends_at_its_total(
    certificate: Certificate, reports: list[tuple[int, int, str]]
) -> None:
    done = [count for count, _, _ in reports]
    totals = {total for _, total, _ in reports}
    assert done[0] == 0
    assert done == sorted(done)
    assert totals == {done[-1]}
    assert max(b - a for a, b in itertools.pairwise(done)) < done[-1] / 20
    words = "\n".join(what for _, _, what in reports)
    for part in (*STRATEGIES, "plain decoding", "int8", "sampled", "control: biased rejection sampling"):
        assert part in ("none", *TRAINED) or part in words


def test_a_true_engine_passes_and_its_controls_are_caught(certificate: Certificate) -> None:
    assert certificate.verdict == "pass"
    assert certificate.wrong_token is not None
    assert certificate.wrong_token.position == 5
    assert not certificate.biased_control.result.passed
    assert [test.verification for test in certificate.distribution] == [
        "exact match, without drafts",
        "exact match",
        "rejection sampling",
        "typical acceptance",
    ]
    *kept, lossy = certificate.distribution
    assert all(test.result.passed and not test.is_lossy for test in kept)
    assert lossy.is_lossy
    assert not lossy.result.passed  # measured, not judged
    assert lossy.result.distance > 3 * max(test.result.distance for test in kept)
    assert all(run.tokens > 0 and run.identical for run in certificate.identity)
    for run in certificate.identity:
        assert (run.cached_tokens > 0) == (run.case.prefix == "cached")
        if run.case.strategy == "prediction":
            assert run.tokens_per_step > 1.5  # drafts were really verified


def test_lossy_formats_are_measured_against_f32(certificate: Certificate) -> None:
    bf16, int8 = certificate.losses
    assert bf16.mode.startswith("bf16")
    assert int8.mode.startswith("int8")
    assert 0 < bf16.divergence < int8.divergence < 0.5
    assert 0 < bf16.tv_mean < int8.tv_mean < 0.5
    assert bf16.tv_mean <= bf16.tv_max
    assert 0.5 < int8.top1 <= 1
    assert int8.positions >= SMALL.num_scored
    assert bf16.perplexity == int8.perplexity > 1
    assert bf16.floor == int8.floor < bf16.divergence
    assert (bf16.finding, int8.finding) == ("loss", "loss")  # of a reference without noise


def test_an_engine_that_believes_its_drafts_is_caught(opener: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole certificate against a broken loop: it accepts a first guess that the target did not make."""

    def credulous(tree: DraftTree, target_tokens: list[int]) -> tuple[list[int], int]:
        return ([0], target_tokens[1]) if len(tree) else ([], target_tokens[0])

    monkeypatch.setattr("outpace.engine.verify.match", credulous)
    found = certify(opener, PROMPTS, SMALL)
    assert found.verdict == "fail"
    assert {"prediction", "lookahead"} & {run.case.strategy for run in found.broken}
    assert not any(d.within_rounding for run in found.broken for d in run.divergences)


def test_a_draft_model_of_the_users_is_used(opener: Any) -> None:
    asked: list[LanguageModel] = []

    def draft(target: LanguageModel) -> LanguageModel:
        asked.append(target)
        return target

    certify(opener, PROMPTS, replace(SMALL, num_tokens=2, draws=64), draft=draft)
    assert len(asked) == 1
