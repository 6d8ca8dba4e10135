from __future__ import annotations

import json
from pathlib import Path

import pytest

from outpace.measure.bench import plots
from outpace.measure.bench.quality import Design, Way, summarise_quality
from outpace.measure.bench.quality_report import quality_lines, quality_markdown, save_quality
from tests.unit.measure.bench.samples import ORIGIN
from tests.unit.measure.bench.test_quality import LOSSY, PLAIN, sample

WAYS = [PLAIN, Way("ngram", "speculative", {"strategy": "ngram"}), LOSSY]
SAMPLES = [
    sample(way.name, kind=kind, index=index, is_right=None if kind == "text" else True)
    for index, kind in enumerate(("text", "copy"))
    for way in WAYS
]


def test_lossless_and_lossy_rows_stand_apart() -> None:
    text = quality_markdown(summarise_quality(SAMPLES, WAYS), ORIGIN, complete=True)
    lossless, lossy = text.index("## Lossless"), text.index("## Lossy")
    assert lossless < text.index("| ngram |") < lossy < text.index("| fast |")
    assert "copy, right" in text
    assert "cut short" not in text
    assert "cut short" in quality_markdown([], ORIGIN, complete=False)


def test_lines_say_what_is_lossy_and_what_is_wrong() -> None:
    rows = summarise_quality([*SAMPLES, *(sample(way.name, index=2, equal=way is PLAIN) for way in WAYS)], WAYS)
    none, ngram, fast = quality_lines(rows)
    assert none.startswith("none: lossless, 7.0 tokens/s (1.00 x plain), 1.00 passes per token, perplexity 4.00")
    assert ngram.endswith("1 texts were NOT plain decoding's")
    assert "LOSSY" in fast


def test_everything_is_saved(tmp_path: Path) -> None:
    save_quality(tmp_path, SAMPLES, WAYS, Design(), ORIGIN, True)
    saved = json.loads((tmp_path / "quality.json").read_text())
    assert (saved["kind"], saved["complete"], len(saved["samples"])) == ("quality", True, 6)
    assert saved["summary"][2]["dial"] == 0.5
    assert (tmp_path / "quality.md").exists()
    assert (tmp_path / "quality.png").exists() == plots.available()


def test_a_picture_shows_the_curve_of_a_dial() -> None:
    pytest.importorskip("matplotlib")
    ways = [PLAIN, *(Way(f"f{dial}", "non-autoregressive", LOSSY.options, False, None, dial) for dial in (0.5, 0.9))]
    rows = summarise_quality([sample(way.name) for way in ways], ways)
    assert plots.plot_quality(rows).startswith(b"\x89PNG")
