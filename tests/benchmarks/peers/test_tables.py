from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers.engines import Absent
from benchmarks.peers.neighbours import Neighbour
from benchmarks.peers.tables import Report, peers_markdown, save_peers, summarise_peers, waiting_share
from benchmarks.peers.turns import PeerSample
from outpace.measure.bench.rows import Speedup
from tests.unit.measure.bench.samples import ORIGIN

ABOUT = {("llama_cpp", "plain"): {"version": "7.0", "weights": "as stored", "settings": "defaults"}}


def peer_sample(engine: str, variant: str, group: int, seconds: float, **overrides: Any) -> PeerSample:
    sample = PeerSample(engine, variant, "a", group, 0, 1, 100, 11, seconds + 1.0, 1.0, 11)
    return replace(sample, **overrides)


def pairs(count: int = 6) -> list[PeerSample]:
    """Ours writes ten tokens in a second, llama.cpp in two; the machine gets slower and slower."""
    return [
        sample
        for group in range(count)
        for sample in (
            peer_sample("outpace", "none", group, 1.0 + group),
            peer_sample("llama_cpp", "plain", group, 2.0 * (1.0 + group), agreed=5),
        )
    ]


def report_of(samples: list[PeerSample], **overrides: Any) -> Report:
    values: dict[str, Any] = {
        "rows": summarise_peers(samples, ABOUT), "absent": [Absent("transformers", "plain-f32", "not installed")],
        "neighbours": None, "waiting": waiting_share(samples), "provenance": ORIGIN, "design": "Six prompts.",
        "complete": True,
    }  # fmt: skip
    return Report(**(values | overrides))


def test_engines_are_compared_pair_by_pair() -> None:
    theirs, ours = summarise_peers(pairs(), ABOUT)
    assert (theirs.engine, ours.engine) == ("llama_cpp", "outpace")
    assert theirs.over_plain == Speedup(pytest.approx(0.5), pytest.approx((0.5, 0.5)))
    assert (theirs.calls, theirs.agreed) == (6, pytest.approx(5 / 11))
    assert theirs.prefill_over_plain is not None
    assert theirs.prefill_over_plain.median == 1.0


def test_a_batch_has_no_prefill_of_its_own() -> None:
    (row,) = summarise_peers([peer_sample("outpace", "none", 0, 1.0, batch=2)], {})
    assert (row.prefill_rate, row.prefill_over_plain, row.over_plain.median) == (None, None, 1.0)


def test_an_engine_without_our_call_beside_it_has_no_row() -> None:
    assert summarise_peers([peer_sample("llama_cpp", "plain", 0, 1.0)], ABOUT) == []


def test_the_busiest_wait_is_told() -> None:
    samples = [*pairs(1), peer_sample("llama_cpp", "plain", 1, 3.0, waiting=1.4)]
    assert waiting_share(samples) == pytest.approx(1.4 / 7)
    assert "at most 20.0% of its time" in peers_markdown(report_of(samples))
    assert waiting_share([]) == 0.0


def test_the_report_shows_settings_neighbours_and_what_was_not_measured() -> None:
    quiet = Neighbour("llama_cpp", "plain", Speedup(1.0, (0.99, 1.01)), Speedup(1.0, (0.98, 1.02)))
    loud = Neighbour("openvino_genai", "plain", Speedup(0.5, (0.4, 0.6)), Speedup(1.0, None))
    text = peers_markdown(report_of(pairs(), neighbours=[quiet, loud]))
    assert "| llama_cpp | 7.0 | as stored | plain | defaults | 6 |" in text
    assert "0.50 (0.50 to 0.50)" in text
    assert "| llama_cpp | plain | 1.00 (0.99 to 1.01) | 1.00 (0.98 to 1.02) |  |" in text
    assert "| openvino_genai | plain | 0.50 (0.40 to 0.60) | 1.00 | **DISTURBED** |" in text
    assert "* transformers, plain-f32: not installed" in text
    assert "cut short" not in text


def test_a_run_without_a_check_or_an_end_says_so() -> None:
    text = peers_markdown(report_of(pairs(1), complete=False))
    assert "No A/A run was made." in text
    assert "cut short" in text


def test_a_run_leaves_its_samples_and_its_report(tmp_path: Path) -> None:
    samples = pairs(2)
    quiet = Neighbour("llama_cpp", "plain", Speedup(1.0, (0.99, 1.01)), Speedup(1.0, None))
    save_peers(tmp_path, report_of(samples, neighbours=[quiet]), samples, "peers-x")
    saved = json.loads((tmp_path / "peers-x.json").read_text())
    assert len(saved["samples"]) == 4
    assert saved["neighbours"][0]["ours"] == {"median": 1.0, "interval": [0.99, 1.01]}
    assert (tmp_path / "peers-x.md").read_text().startswith("# Engines side by side")
