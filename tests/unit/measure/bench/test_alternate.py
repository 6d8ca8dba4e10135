from __future__ import annotations

from collections import Counter

import pytest

from outpace.api import LanguageModel
from outpace.drafters import NGram
from outpace.errors import UsageError
from outpace.measure.bench.alternate import (
    Design,
    call_groups,
    check,
    default_strategies,
    full_batches,
    lengthened,
    measure,
    num_calls,
)
from outpace.measure.bench.sample import Sample
from outpace.measure.bench.traffic import weight_bytes
from outpace.measure.prompts import TaskPrompt

PROMPTS = [
    TaskPrompt("a", "the cat sat on the mat"), TaskPrompt("a", "the dog sat on the log"), TaskPrompt("b", "def f(x):"),
]  # fmt: skip
DESIGN = Design(("ngram", "suffix"), batches=(1, 2), contexts=(0, 60), num_tokens=12, repeats=2)


@pytest.fixture(scope="module")
def samples(lm: LanguageModel) -> list[Sample]:
    return list(measure(lm, PROMPTS, DESIGN))


def test_every_strategy_answers_every_group_beside_plain_decoding(samples: list[Sample]) -> None:
    assert len(samples) == num_calls(PROMPTS, DESIGN)
    groups = Counter(sample.group for sample in samples)
    assert set(groups.values()) == {3}
    for group in groups:
        own = [sample for sample in samples if sample.group == group]
        assert [sample.strategy for sample in own] == ["none", "ngram", "suffix"]
        assert len({(sample.condition, sample.prompts, sample.repeat) for sample in own}) == 1


def test_every_text_is_compared_and_long_enough(samples: list[Sample]) -> None:
    assert all(sample.equal for sample in samples)
    assert all(sample.tokens == 12 * sample.condition.batch for sample in samples)
    assert all(sample.prompt_tokens >= 60 * sample.condition.batch for sample in samples if sample.condition.context)


def test_times_and_counts_of_a_sample_fit_together(samples: list[Sample], lm: LanguageModel) -> None:
    for sample in samples:
        assert 0 < sample.decode_seconds + sample.first_seconds <= sample.seconds * 1.001
        assert sum(sample.phases.values()) == pytest.approx(sample.decode_seconds)
        assert sample.accepted <= sample.verified
        assert sample.decode_tokens == sample.steps + sample.accepted
        if sample.strategy == "none":
            assert sample.verified == 0
            assert sample.num_bytes > 11 * weight_bytes(lm)


def test_a_text_that_differs_is_found(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "outpace.engine.verify.match",
        lambda tree, target_tokens: ([0], target_tokens[1]) if len(tree) else ([], target_tokens[0]),
    )
    design = Design(("lookahead",), samplings=("greedy",), num_tokens=12, repeats=1)
    found = {sample.strategy: sample.equal for sample in measure(lm, PROMPTS[:1], design)}
    assert found == {"none": True, "lookahead": False}


def test_a_trained_drafter_is_compared_without_being_named(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_strategies(lm) == ("auto", "suffix", "ngram", "lookahead")
    trained = NGram()
    trained.name = "block"
    monkeypatch.setattr(lm.loaded, "trained", trained)
    assert default_strategies(lm) == ("auto", "block", "suffix", "ngram", "lookahead")


def test_batches_are_full() -> None:
    assert full_batches([4, 5, 6], 2) == [[4, 5], [6, 4]]
    assert full_batches([7], 3) == [[7, 7, 7]]
    assert full_batches([1, 2, 3, 4], 2) == [[1, 2], [3, 4]]


def test_a_cut_run_is_balanced_because_repeats_come_outermost() -> None:
    repeats = [group.repeat for group in call_groups(PROMPTS, DESIGN)]
    assert repeats == sorted(repeats)


def test_a_longer_context_keeps_the_question_and_never_repeats_a_passage(lm: LanguageModel) -> None:
    prompts = [TaskPrompt("a", f"question {i}: " + "abc" * i) for i in range(1, 20)]
    tokens = lengthened(lm, prompts, 200)[3]
    assert 180 <= len(tokens) <= 260
    text = lm.tokenizer.decode(tokens)
    assert prompts[3].text in text
    assert text.count("question 7:") <= 1
    with pytest.raises(UsageError, match="give more prompts, or a smaller context"):
        lengthened(lm, prompts, 100_000)


@pytest.mark.parametrize(
    ("design", "message"),
    [
        (Design(("ngrm",)), "did you mean 'ngram'"),
        (Design(("prediction",)), "needs the text that you expect"),
        (Design(("draft_model",)), "needs a second"),
    ],
)
def test_a_strategy_that_cannot_be_measured_is_refused_before_anything_is(
    lm: LanguageModel, design: Design, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        check(lm, design)


def test_a_draft_model_is_measured_too(lm: LanguageModel) -> None:
    design = Design(("draft_model",), samplings=("sampled",), num_tokens=8, repeats=1)
    check(lm, design, lm)
    found = {sample.strategy: sample for sample in measure(lm, PROMPTS[:1], design, draft_model=lm)}
    assert found["draft_model"].equal
    assert found["draft_model"].accepted > 0


def test_progress_counts_the_calls(lm: LanguageModel) -> None:
    reports: list[tuple[int, int, str]] = []
    design = Design(("ngram",), samplings=("greedy",), num_tokens=4, repeats=2)
    list(measure(lm, PROMPTS[:2], design, progress=lambda *report: reports.append(report)))
    total = num_calls(PROMPTS[:2], design)
    assert [done for done, _, _ in reports] == list(range(total + 1))
    assert {own for _, own, _ in reports} == {total}
