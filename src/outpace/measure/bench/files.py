"""What a run leaves behind: one JSON file with every sample, a Markdown report, plots."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from outpace.measure.bench import plots
from outpace.measure.bench.alternate import Design
from outpace.measure.bench.growth import Point, growth_lines, summarise_growth
from outpace.measure.bench.router_comparison import compare_router
from outpace.measure.bench.rows import Row, summarise
from outpace.measure.bench.sample import SAMPLINGS, Sample
from outpace.measure.bench.tables import bench_markdown, growth_markdown
from outpace.measure.output_file import save

SCHEMA = 2
DIGITS = 6  # significant: far finer than any clock repeats itself


def save_bench(
    folder: Path, samples: Sequence[Sample], design: Design, provenance: dict[str, Any], complete: bool
) -> list[Row]:
    """Write bench.json, bench.md and the plots into `folder`; return the rows."""
    rows, comparisons = summarise(samples), compare_router(samples)
    parts = {"design": design, "samplings": SAMPLINGS, "summary": rows, "router": comparisons, "samples": samples}
    save_run(folder, "bench", complete, provenance, parts)
    save(folder / "bench.md", bench_markdown(rows, comparisons, provenance, complete))
    if plots.available():
        for name, picture in plots.plot_bench(rows).items():
            save(folder / name, picture)
    return rows


def save_growth(folder: Path, points: Sequence[Point], provenance: dict[str, Any], complete: bool) -> list[str]:
    """Write growth.json, growth.md and growth.png into `folder`; return what they say, in words."""
    curves = summarise_growth(points)
    lines = growth_lines(curves)
    save_run(folder, "growth", complete, provenance, {"summary": curves, "samples": points})
    save(folder / "growth.md", growth_markdown(curves, lines, provenance, complete))
    if curves and plots.available():
        save(folder / "growth.png", plots.plot_growth(curves))
    return lines


def save_run(folder: Path, kind: str, complete: bool, provenance: dict[str, Any], parts: Mapping[str, Any]) -> None:
    """Write a run's numbers: `kind`.json, with what every kind has before its own parts."""
    head = {"schema": SCHEMA, "kind": kind, "complete": complete, "provenance": provenance}
    write_json(folder / f"{kind}.json", {**head, **parts})


def write_json(path: Path, value: Mapping[str, Any], digits: int = DIGITS) -> None:
    """Write an object as JSON: numbers with so many significant digits, each entry of a list on a line of its own.

    Dataclasses become objects of their fields.
    """
    save(path, as_lines(value, digits))


def as_lines(value: Mapping[str, Any], digits: int) -> str:
    """Return an object as JSON text that `git diff` and `grep` can read."""
    parts = []
    for name, part in value.items():
        part = rounded(part, digits)
        text = _dumps(part)
        if isinstance(part, list) and part:
            text = "[\n  " + ",\n  ".join(map(_dumps, part)) + "\n ]"
        parts.append(f" {_dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def rounded(value: Any, digits: int) -> Any:
    """Return plain JSON values, with every number that is not whole rounded to so many significant digits."""
    if is_dataclass(value) and not isinstance(value, type):
        return rounded(asdict(value), digits)
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, Mapping):
        return {name: rounded(part, digits) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part, digits) for part in value]
    return value


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
