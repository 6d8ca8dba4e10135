from __future__ import annotations

import pytest

from outpace.api import Result
from outpace.cli.summary import summarise
from outpace.trace import Stats


def test_the_summary_says_that_a_text_is_lossy(capsys: pytest.CaptureFixture[str]) -> None:
    stats = Stats(steps=2, tokens=3)
    for lossless, words in ((True, "; length]"), (False, "; length; lossy: typical acceptance]")):
        summarise(
            Result(
                text="", tokens=[1], finish_reason="length", seed=0, lossless=lossless, stats=stats, sources=[],
                verification="typical",
            )
        )  # fmt: skip
        assert capsys.readouterr().err.strip().endswith(words)


def test_the_summary_of_a_refined_text_has_its_passes_and_says_that_it_is_lossy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stats = Stats(steps=2, passes=5, tokens=20, decode_seconds=0.5)
    summarise(
        Result(
            text="", tokens=[1], finish_reason="length", seed=0, lossless=False, stats=stats, sources=[],
            verification="none",
        )
    )  # fmt: skip
    assert capsys.readouterr().err == (
        "[20 tokens in 5 passes, 0.25 passes per token, 40.0 tokens/s; length; lossy: refined, not verified]\n"
    )


def test_the_summary_of_a_sampled_text_has_the_seed_that_writes_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    stats = Stats(steps=2, tokens=3)
    result = Result(text="", tokens=[1], finish_reason="stop", seed=7, lossless=True, stats=stats, sources=[])
    for sampled, end in ((True, "; stop; seed 7]\n"), (False, "; stop]\n")):
        summarise(result, sampled=sampled)
        assert capsys.readouterr().err.endswith(end)


def test_the_summary_tells_what_went_wrong_without_changing_the_text(capsys: pytest.CaptureFixture[str]) -> None:
    stats = Stats(steps=2, tokens=3, decode_seconds=0.5, first_step_tokens=1, warnings=["add verified=True"])
    summarise(Result(text="", tokens=[1, 2, 3], finish_reason="length", seed=0, lossless=True, stats=stats, sources=[]))
    assert capsys.readouterr().err == (
        "[3 tokens in 2 steps, 1.50 tokens per step, 4.0 tokens/s; length]\nwarning: add --verified\n"
    )
