"""Turn the JSON files of a machine's runs into one small file that can be kept in the repository: rows, no samples.

    python -m benchmarks.summary FOLDER -o benchmarks/results/MACHINE/summary.json

FOLDER holds what `outpace bench`, `bench growth`, `certify`, `python -m benchmarks.peers` and
`python -m benchmarks.perplexity` wrote. A row names its run, the file's name without ".json".
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from outpace.measure.bench.files import write_json

DIGITS = 4
Json = Mapping[str, Any]


def summarise(folder: Path) -> dict[str, Any]:
    """Return the runs of a folder and all their rows. Raises ValueError for a file of another kind."""
    runs: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        kind = data.get("kind")
        if kind not in _ROWS:
            raise ValueError(f"{path}: kind must be one of {', '.join(_ROWS)}, got {kind!r}")
        runs.append(_given(_run(path.stem, data)))
        rows += [{"run": path.stem, **_given(row)} for row in _ROWS[kind](data)]
    if not runs:
        raise ValueError(f"{folder} holds no JSON file")
    return {"schema": 1, "kind": "summary", "runs": runs, "rows": rows}


def _given(row: Json) -> dict[str, Any]:
    """Return a run or a row without what is unknown or was not measured."""
    return {name: value for name, value in row.items() if value is not None}


def _run(name: str, data: Json) -> dict[str, Any]:
    """Return what a reader must know of a run: when, which code, on what."""
    p = data["provenance"]
    run = {
        "run": name, "kind": data["kind"], "date": p["date"], "outpace": p["outpace"], "commit": p["commit"],
        "cpu": p["machine"]["cpu"], "isa": p["isa"], "threads": p["threads"], "load": p["machine"]["load_average"],
        "model": p["model"]["name"], "model_sha256": p["model"]["sha256"][:16], "versions": p["versions"],
    }  # fmt: skip
    if "design" in data:
        run["design"] = data["design"]
    return run


def _bench(data: Json) -> Iterator[dict[str, Any]]:
    for row in data["summary"]:
        numbers = row["numbers"]
        out = {**_condition(row["condition"]), "category": row["category"], "strategy": row["strategy"],
               "calls": row["calls"]}  # fmt: skip
        if row["unequal"]:
            out["unequal"] = row["unequal"]
        if numbers is not None:
            out |= {"rate": numbers["rate"]["median"], **_ratio("speedup", numbers["speedup"])}
            out |= {"tokens_per_step": numbers["tokens_per_step"], "acceptance": numbers["acceptance"]}
            out |= {"bandwidth": numbers["bandwidth_fraction"], "first_token": numbers["first_seconds"]}
        yield out
    for own in data.get("router", ()):
        yield {
            **_condition(own["condition"]), "category": own["category"], "pairs": own["pairs"],
            **_ratio("auto_over_plain", own["plain"]), **_ratio("auto_over_best_fixed", own["best"]),
        }  # fmt: skip


def _condition(condition: Json) -> dict[str, Any]:
    """Return a condition without what is usual."""
    usual = {"batch": 1, "context": 0}
    return {name: value for name, value in condition.items() if usual.get(name) != value}


def _ratio(name: str, speedup: Json | None) -> dict[str, Any]:
    if speedup is None:
        return {}
    interval = {} if speedup["interval"] is None else {f"{name}_95": speedup["interval"]}
    return {name: speedup["median"], **interval}


def _growth(data: Json) -> Iterator[dict[str, Any]]:
    for curve in data["summary"]:
        yield {"way": curve["way"], "exponent": curve["exponent"], "total_seconds": curve["total"]}
        for n, seconds in zip(curve["sizes"], curve["seconds"], strict=True):
            yield {"way": curve["way"], "tokens": n, **seconds}


def _certificate(data: Json) -> Iterator[dict[str, Any]]:
    cases = Counter(run["identical"] for run in data["identity"])
    tokens = sum(run["tokens"] for run in data["identity"])
    yield {"verdict": data["verdict"], "identical": cases[True], "different": cases[False], "tokens": tokens,
           "seconds": data["seconds"]}  # fmt: skip
    for test in (*data["distribution"], data["distribution_control"]):
        names = ("verification", "cells", "statistic", "p_value", "detectable", "passed", "lossy_by_request")
        yield {name: test[name] for name in names if name in test}  # certificates of old do not know the last
    yield from data["losses"]


def _peers(data: Json) -> Iterator[dict[str, Any]]:
    for row in data["summary"]:
        prefill = row["prefill_rate"]
        yield {
            "engine": row["engine"], "variant": row["variant"], **row["about"], "calls": row["calls"],
            "rate": row["rate"]["median"], **_ratio("over_plain", row["over_plain"]),
            "prefill_rate": prefill and prefill["median"],
            **_ratio("prefill_over_plain", row["prefill_over_plain"]), "agreed": row["agreed"],
        }  # fmt: skip
    for own in data["neighbours"] or ():
        yield {"engine": own["engine"], "variant": own["variant"], "neighbour": True,
               **_ratio("ours_after_it", own["ours"]), **_ratio("it_after_ours", own["its"])}  # fmt: skip


def _perplexity(data: Json) -> Iterator[dict[str, Any]]:
    yield from data["rows"]


_ROWS: dict[str, Callable[[Json], Iterator[dict[str, Any]]]] = {
    "bench": _bench,
    "growth": _growth,
    "certificate": _certificate,
    "peers": _peers,
    "perplexity": _perplexity,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        write_json(options.output, summarise(options.folder), DIGITS)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"{options.output}: {options.output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
