"""What a run leaves behind: one JSON file with every raw sample, a Markdown report, plots."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from outpace.measure.bench import plots
from outpace.measure.bench.alternate import Design
from outpace.measure.bench.growth import Point, growth_dict, growth_lines, summarise_growth
from outpace.measure.bench.router_comparison import standings
from outpace.measure.bench.rows import Row, summarise
from outpace.measure.bench.sample import SAMPLINGS, Sample
from outpace.measure.bench.tables import bench_markdown, growth_markdown

SCHEMA = 1


def save_bench(
    folder: Path, samples: Sequence[Sample], design: Design, provenance: dict[str, Any], complete: bool
) -> list[Row]:
    """Write bench.json, bench.md and the plots into `folder`; return the rows."""
    rows, standing = summarise(samples), standings(samples)
    write_json(
        folder / "bench.json",
        {
            "schema": SCHEMA,
            "kind": "bench",
            "complete": complete,
            "provenance": provenance,
            "design": asdict(design),
            "samplings": {name: dict(options) for name, options in SAMPLINGS.items()},
            "summary": [row.as_dict() for row in rows],
            "standings": [asdict(one) for one in standing],
            "samples": [asdict(sample) for sample in samples],
        },
    )
    (folder / "bench.md").write_text(bench_markdown(rows, standing, provenance, complete), encoding="utf-8")
    if plots.available():
        plots.plot_bench(rows, folder)
    return rows


def save_growth(folder: Path, points: Sequence[Point], provenance: dict[str, Any], complete: bool) -> list[str]:
    """Write growth.json, growth.md and growth.png into `folder`; return what they say, in words."""
    curves = summarise_growth(points)
    lines = growth_lines(curves)
    write_json(
        folder / "growth.json",
        {
            "schema": SCHEMA,
            "kind": "growth",
            "complete": complete,
            "provenance": provenance,
            "summary": growth_dict(curves),
            "samples": [asdict(point) for point in points],
        },
    )
    (folder / "growth.md").write_text(growth_markdown(curves, lines, provenance, complete), encoding="utf-8")
    if curves and plots.available():
        plots.plot_growth(curves, folder / "growth.png")
    return lines


def write_json(path: Path, value: Any) -> None:
    """Write JSON; an earlier file stays whole until the new one is."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
    os.replace(partial, path)
