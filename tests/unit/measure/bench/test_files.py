from __future__ import annotations

import json
from pathlib import Path

from outpace.measure.bench import files, plots
from outpace.measure.bench.alternate import Design
from tests.unit.measure.bench.samples import ORIGIN, sample


def test_a_run_leaves_json_with_its_samples_markdown_and_plots(tmp_path: Path) -> None:
    samples = [sample("none", 0, 50), sample("auto", 0, 40)]
    files.save_bench(tmp_path, samples, Design(("auto",)), ORIGIN, complete=False)
    saved = json.loads((tmp_path / "bench.json").read_text())
    assert (saved["schema"], saved["complete"], len(saved["samples"])) == (2, False, 2)
    assert saved["samples"][1]["decode_seconds"] == 2.5
    report = (tmp_path / "bench.md").read_text()
    assert "cut short" in report
    assert "| chat | 50 | 0.80 |" in report  # losses are shown as they are
    if plots.available():
        assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".md", ".png"}


def test_a_run_that_was_cut_before_its_first_call_still_has_a_report(tmp_path: Path) -> None:
    assert files.save_bench(tmp_path, [], Design(("auto",)), ORIGIN, complete=False) == []
    assert "cut short" in (tmp_path / "bench.md").read_text()


def test_numbers_are_short_and_every_sample_is_a_line() -> None:
    value = {"a": 1 / 3, "samples": [{"x": 1234567.891, "n": 123456789, "s": "é", "none": None}, {"x": 0.0}], "b": []}
    text = files.as_lines(value, 4)
    assert text.splitlines() == [
        "{",
        ' "a": 0.3333,',
        ' "samples": [',
        '  {"x": 1235000.0, "n": 123456789, "s": "é", "none": null},',
        '  {"x": 0.0}',
        " ],",
        ' "b": []',
        "}",
    ]
    assert json.loads(text)["samples"][0]["n"] == 123456789  # whole numbers stay whole


def test_a_whole_bench_of_samples_takes_a_line_each(tmp_path: Path) -> None:
    """The file of a run grows by one line a sample, and a sample's numbers have six digits."""
    sizes = []
    for count in (1, 11):
        samples = [sample("none", group, 50 + 1 / 3) for group in range(count)]
        files.save_bench(tmp_path, samples, Design(("auto",)), ORIGIN, complete=True)
        text = (tmp_path / "bench.json").read_text()
        assert "1.98675" in text
        assert "1.986754" not in text
        sizes.append(len(text.splitlines()))
    assert sizes[1] == sizes[0] + 10


def test_an_earlier_file_stays_whole_until_the_new_one_is(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})
    files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert [own.name for own in tmp_path.iterdir()] == ["x.json"]
