from __future__ import annotations

from pathlib import Path

from outpace.train.adapt.measure import Decoded, Measured
from outpace.train.adapt.options import AdaptOptions
from outpace.train.adapt.report import card, measured_table
from outpace.train.ledger import Ledger
from tests.unit.train.report.test_card import ORIGIN, ledger


def diffusion(verified: float) -> Measured:
    rows = (Decoded(0.9, 1.5, verified, 0.96), Decoded(0.0, 8.0, 1.25, 0.5))
    return Measured(rows, 0.75, 640, 1.4, None, None, verified)


def jacobi(tokens: float) -> Measured:
    return Measured((Decoded(1.0, tokens, None, 0.9),), 0.75, 640, 1.4, 0.875, 1.5, tokens * 0.875)


def made(folder: Path) -> Ledger:
    own = ledger(folder)
    own.finish("training", conversations=80, steps=7, positions=500, device="cpu")
    return own


def test_a_card_of_diffusion_says_what_it_brings_and_that_it_is_lossy(tmp_path: Path) -> None:
    options = AdaptOptions(kind="diffusion", steps=7, block=8)
    text = card(options, made(tmp_path), diffusion(1.0), diffusion(2.0), ORIGIN, "outpace train diffusion", 10_400_000)
    for said in (
        "# An adapter for m.gguf: `diffusion`", "`outpace train diffusion`", "9.9 (abc)", "10.4 MB", "lossy",
        "640 tokens", "| 0.9 | 1.50 | 96.0% | 2.00 | 1.00 |", "| 0 (one pass) | 8.00 | 50.0% | 1.25 | 1.25 |",
        "2.000, 1.000 before", "80 conversations, 900 tokens to learn", "| steps | 7 |", "`block` 8", "torch 2.13",
    ):  # fmt: skip
        assert said in text
    assert "None" not in text


def test_a_table_of_jacobi_has_the_quality_against_the_original_beside_the_speed() -> None:
    lines = measured_table("jacobi", jacobi(1.0), jacobi(2.5)).splitlines()
    assert lines[2:] == [
        "| before | 1.00 | 90.0% | 87.5% | 1.500 (the original's 1.400) |",
        "| after | 2.50 | 90.0% | 87.5% | 1.500 (the original's 1.400) |",
    ]
