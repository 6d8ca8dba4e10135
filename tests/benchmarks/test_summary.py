from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.peers.neighbours import Neighbour
from benchmarks.peers.tables import save_peers
from benchmarks.summary import main, summarise
from outpace.measure.bench.alternate import Design
from outpace.measure.bench.files import save_bench, save_growth, write_json
from outpace.measure.bench.growth import Point
from outpace.measure.bench.rows import Speedup
from outpace.measure.certify import Certificate
from tests.benchmarks.peers.test_tables import pairs, report_of
from tests.unit.measure.bench.samples import ORIGIN, sample
from tests.unit.measure.certify.conftest import certificate, opener, reports  # noqa: F401 -- fixtures

ORIGIN = {**ORIGIN, "versions": {"python": "3"}}


def test_a_benchs_rows_are_kept_and_its_samples_left_out(tmp_path: Path) -> None:
    samples = [
        own
        for group in range(6)
        for own in (sample("none", group, 100, repeat=group), sample("auto", group, 100 * 4 / 3, repeat=group))
    ]
    save_bench(tmp_path, samples, Design(("auto",)), ORIGIN, complete=True)
    main([str(tmp_path), "-o", str(tmp_path / "out")])
    text = (tmp_path / "out").read_text()
    saved = json.loads(text)
    assert [run["run"] for run in saved["runs"]] == ["bench"]
    assert saved["runs"][0]["design"]["strategies"] == ["auto"]
    row = next(row for row in saved["rows"] if row.get("strategy") == "auto" and row["category"] == "all")
    assert (row["rate"], row["speedup"], row["speedup_95"], row["calls"]) == (133.3, 1.333, [1.333, 1.333], 6)
    router = next(row for row in saved["rows"] if "pairs" in row and row["category"] == "all")
    assert (router["auto_over_plain"], router["auto_over_best_fixed"]) == (1.333, 1.333)
    assert len(text.splitlines()) < 16  # a row a line, no samples
    assert "null" not in text.partition('"rows"')[2]


def test_every_kind_of_run_has_rows(tmp_path: Path, certificate: Certificate) -> None:  # noqa: F811
    save_growth(tmp_path, [Point(w, n, 0, n * 1e-3) for w in ("cache", "no cache") for n in (16, 512)], ORIGIN, True)
    neighbour = Neighbour("llama_cpp", "plain", Speedup(1.0, (0.99, 1.01)), Speedup(1.0, None))
    save_peers(tmp_path, report_of(pairs(), neighbours=[neighbour], provenance=ORIGIN), pairs(), "peers-x")
    (tmp_path / "certificate.json").write_text(json.dumps(certificate.as_dict()))
    write_json(
        tmp_path / "perplexity.json",
        {"kind": "perplexity", "provenance": ORIGIN, "tokens": 5, "rows": [{"ops": "native", "perplexity": 2.5}]},
    )
    rows = summarise(tmp_path)["rows"]
    assert {"run": "growth", "way": "cache", "tokens": 512, "median": 0.512, "low": 0.512, "high": 0.512} in rows
    assert {"run": "perplexity", "ops": "native", "perplexity": 2.5} in rows
    verdict = next(row for row in rows if "verdict" in row)
    assert (verdict["verdict"], verdict["different"]) == ("pass", 0)
    # Exact match without and with drafts, rejection sampling; then what is lossy by request, and the control.
    assert [row["passed"] for row in rows if "verification" in row] == [True, True, True, False, False]
    peer = next(row for row in rows if row.get("engine") == "llama_cpp" and "rate" in row)
    assert peer["over_plain"] == pytest.approx(0.5)
    assert next(row for row in rows if row.get("neighbour"))["ours_after_it_95"] == [0.99, 1.01]


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content, message in (("", "holds no JSON file"), ('{"kind": "trace"}', "got 'trace'")):
        if content:
            (tmp_path / "x.json").write_text(content)
        with pytest.raises(SystemExit) as end:
            main([str(tmp_path), "-o", str(tmp_path / "out")])
        assert end.value.code == 2
        assert message in capsys.readouterr().err
