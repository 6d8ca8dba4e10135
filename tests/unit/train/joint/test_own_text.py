from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import outpace
from outpace import LanguageModel
from outpace.train.drafting import Drafted
from outpace.train.joint.files import beside
from outpace.train.joint.own_text import kept, own_text
from outpace.train.options import TrainOptions
from outpace.train.report.outcome import Finished, finish
from outpace.train.run import Run
from outpace.train.text.corpus import Conversation, Corpus
from outpace.train.trainer import Outcome
from tests.unit.train.test_stages import prompts_file

SMALL: dict[str, Any] = {
    "num_responses": 32, "max_tokens": 40, "num_checked": 12, "held_out": 0.5, "steps": 16, "batch_tokens": 256,
    "learning_rate": 0.02, "target_learning_rate": 0.01, "rank": 16, "evaluations": 2,
}  # fmt: skip


def opened(lm: LanguageModel) -> Callable[[Path], LanguageModel]:
    return lambda drafter: outpace.load(lm.path, threads=1, drafter=drafter, adapter=beside(drafter))


@pytest.fixture(scope="module")
def run_of(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    folder = tmp_path_factory.mktemp("run")
    prompts = prompts_file(folder / "p.jsonl", 40)
    out = folder / "out"
    return lambda **more: Run(TrainOptions(kind="medusa", joint=True, prompts=prompts, **SMALL | more), out, lm)


@pytest.fixture(scope="module")
def finished(lm: LanguageModel, run_of: Callable[..., Run]) -> Finished:
    return finish(run_of(), opened(lm), "outpace train medusa --joint")


def test_forecast_and_decoding_agree_on_the_tuned_targets_own_text(finished: Finished) -> None:
    assert finished.check.agrees
    assert finished.check.different == 0
    own = Corpus.open(finished.drafter.parent / "tuned")
    assert sum(row.texts for row in finished.check.totals) == len(own) == 12


def test_the_card_says_that_the_target_is_another_model_and_how_far_it_is(finished: Finished) -> None:
    card = (finished.drafter.parent / "card.md").read_text()
    facts = json.loads((finished.drafter.parent / "run.json").read_text())["stages"]
    assert "**lossy relative to the original**" in card
    assert f"{facts['training']['facts']['measured']['divergence']['kl']:.4f}" in card
    assert f"{facts['check']['facts']['kept']['same']} of 12" in card
    assert finished.adapter is not None
    assert finished.adapter.read_bytes() == beside(finished.drafter.parent / "training" / "drafter.gguf").read_bytes()


def test_a_finished_run_is_told_again_without_any_work(
    finished: Finished, run_of: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LanguageModel, "generate", None)
    assert (
        finish(run_of(), lambda drafter: pytest.fail("nothing is loaded"), "outpace train medusa --joint") == finished
    )


def test_a_finished_run_may_still_be_merged(
    finished: Finished, lm: LanguageModel, run_of: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any training or decoding; the drafter fits the merged model, and is lossless with it."""
    with monkeypatch.context() as patched:
        patched.setattr(LanguageModel, "generate", None)
        again = finish(run_of(merge=True), opened(lm), "outpace train medusa --joint --merge")
    assert again.model is not None
    merged = outpace.load(again.model, threads=1, drafter=again.drafter)
    plain = merged.generate([[5, 9, 2], [40, 7]], strategy="none", max_new_tokens=40, seed=1)
    drafted = merged.generate([[5, 9, 2], [40, 7]], strategy="medusa", max_new_tokens=40, seed=1)
    assert [own.tokens for own in drafted] == [own.tokens for own in plain]


def test_text_that_was_begun_is_gone_on_with(
    lm: LanguageModel, joint: Outcome[Drafted], held_out: list[Conversation], tmp_path: Path
) -> None:
    """What the target wrote before a kill is not written again, and the whole is the same."""
    own, options = opened(lm)(joint.path), TrainOptions(kind="medusa", joint=True, **SMALL)
    whole = own_text(own, held_out, options, tmp_path / "whole")
    own_text(own, held_out[:8], options, tmp_path / "parts")
    shown: list[tuple[int, int]] = []
    parts = own_text(own, held_out, options, tmp_path / "parts", lambda *state: shown.append(state))
    assert shown == [(16, 24), (24, 24)]
    assert [x.tokens.tolist() for x in parts] == [x.tokens.tolist() for x in whole]
    assert kept(held_out, whole).same < len(held_out)


def test_what_is_kept_of_the_originals_text_is_counted() -> None:
    def said(*tokens: int, seed: int = 0) -> Conversation:
        return Conversation(np.array(tokens, np.int32), 2, bool(seed), "tiny", float(seed > 0), seed=seed)

    before = [said(1, 2, 5, 6, 7), said(1, 2, 5, 6, 7, seed=3), said(1, 3, 8, 8)]
    found = kept(before, [said(1, 2, 5, 6, 7), said(1, 2, 5, 9, 7, seed=3)])
    assert (found.prompts, found.same) == (2, 1)
    assert found.leading == (3 + 1) / 6
