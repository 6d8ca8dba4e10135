from __future__ import annotations

from pathlib import Path
from typing import Any

from outpace.train.ledger import Ledger
from outpace.train.options import TrainOptions
from outpace.train.report.card import card, check_table, verdict
from outpace.train.report.forecast import Check, Row

ORIGIN = {
    "outpace": "9.9", "commit": "abc", "date": "2026-01-01T00:00:00Z", "threads": 3, "ops": "native", "isa": "avx2",
    "machine": {"cpu": "A CPU", "cpus_allowed": 4, "system": "Linux 6"}, "versions": {"torch": "2.13"},
    "model": {"name": "m.gguf", "bytes": 96_000_000, "sha256": "0123456789abcdef0123"},
}  # fmt: skip


def check(real: float = 2.0, different: int = 0) -> Check:
    rows = (Row("a|b", False, 3, 60, 2.0, real),)
    return Check(rows, (Row("all", False, 3, 60, 2.0, real),), different)


def ledger(folder: Path, texts: bool = False, score_before: float | None = None) -> Ledger:
    own = Ledger.open(folder, {})
    if not texts:
        own.finish("prompts", train=90, held_out=10, dropped={"exact": 4, "near": 0})
        own.finish("responses", conversations=80, tokens=900)
    own.add_seconds("training", 90)
    own.finish("held-out", conversations=9, tokens=100)
    facts: dict[str, Any] = {
        "measured": {"divergence": None},
        "conversations": 80,
        "steps": 7,
        "positions": 500,
        "device": "cpu",
    }
    own.finish("training", **facts, score=2.345, score_before=score_before)
    return own


def test_a_card_says_what_it_was_made_of_how_on_what_and_what_it_brings(tmp_path: Path) -> None:
    options = TrainOptions(kind="eagle", steps=7, seed=5)
    text = card(options, ledger(tmp_path), check(), ORIGIN, "outpace train eagle", 5_600_000)
    for said in (
        "# A drafter for m.gguf: `eagle`", "`outpace train eagle`", "9.9 (abc)", "5.6 MB", "0123456789abcdef",
        "90 to train on, 10 held out", "left out: 4 exact |", "80 conversations, 900 tokens to learn",
        "| steps | 7 |", "| minutes | 1.5 |", "`seed` 5", "A CPU, 4 CPUs, 3 threads, native ops, avx2", "torch 2.13",
        "agree (forecast / decoded: 1.000 greedy",
    ):  # fmt: skip
        assert said in text
    assert "continues" not in text
    assert "None" not in text


def test_a_card_of_given_texts_and_of_a_continued_drafter(tmp_path: Path) -> None:
    options = TrainOptions(kind="eagle", texts=Path("some/corpus"))
    text = card(options, ledger(tmp_path, texts=True, score_before=2.0), check(), ORIGIN, "x", 1)
    assert "| texts | some/corpus |" in text
    assert "2.000 before, 2.345 after" in text


def test_a_card_says_which_accelerator_wrote_the_text(tmp_path: Path) -> None:
    own = ledger(tmp_path)
    own.finish("responses", conversations=80, tokens=900, written_by="a GPU, as the engine computes")
    text = card(TrainOptions(kind="eagle", steps=7), own, check(), ORIGIN, "x", 1)
    assert "900 tokens to learn, written by a GPU, as the engine computes |" in text


def test_rows_are_told_with_their_ratio() -> None:
    lines = check_table(check(1.6)).splitlines()
    assert lines[2:] == [
        "| a\\|b | greedy | 3 | 60 | 2.00 | 1.60 | 1.250 |",
        "| **all** | greedy | 3 | 60 | 2.00 | 1.60 | 1.250 |",
    ]


def test_the_verdict_is_a_line() -> None:
    assert verdict(check()).startswith("Forecast and decoding agree")
    assert verdict(check(1.6)).startswith("Forecast and decoding DISAGREE")
    assert verdict(check(different=2)).startswith("NOT COMPARABLE: the engine wrote 2 of")


def test_a_card_of_a_tuned_target_says_what_it_lost(tmp_path: Path) -> None:
    own = ledger(tmp_path, score_before=1.5)
    own.note(
        "training",
        measured={
            "divergence": {"positions": 90, "top1": 0.975, "kl": 0.0123, "perplexity": 2.5, "original_perplexity": 2.4}
        },
    )
    own.note("check", kept={"prompts": 9, "same": 4, "leading": 0.625})
    text = card(TrainOptions(kind="medusa", joint=True), own, check(), ORIGIN, "x", 1)
    for said in (
        "The target is another model now", "**lossy relative to the original**", "written by the tuned target",
        "(90 held-out positions) | 97.5% |", "| 0.0123 |", "| 2.500 (the original's 2.400) |", "| 4 of 9 |",
        "| 62.5% |",
        "times the share of the original's tokens: 1.500 before",
    ):  # fmt: skip
        assert said in text
    assert "another model" not in card(TrainOptions(kind="medusa"), own, check(), ORIGIN, "x", 1)
