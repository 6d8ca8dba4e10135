"""What the repository holds: sources and what documentation shows, no raw results."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_BYTES = 100_000
MAX_SUMMARY_BYTES = 40_000
LARGER: dict[str, str] = {  # path -> why a tracked file may be larger: weights and fixtures only
    "src/outpace/drafters/weights/smollm2-135m.gguf": "the default model's trained drafter, package data",
    "examples/block-diffusion.gguf": "an adapter of the default model, outside the package",
}


def tracked() -> list[Path]:
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    try:
        listed = subprocess.run(command, check=True, capture_output=True).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a git checkout")
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_no_tracked_file_exceeds_100_kilobytes() -> None:
    """Raw results of a run belong outside; `python -m benchmarks.summary` makes a summary of them."""
    sizes = {str(path.relative_to(ROOT)): path.stat().st_size for path in tracked()}
    assert {name: size for name, size in sizes.items() if size > MAX_BYTES and name not in LARGER} == {}
    assert [name for name in LARGER if sizes.get(name, 0) <= MAX_BYTES] == []


def test_results_are_summaries_reports_and_plots() -> None:
    results = [path for path in tracked() if path.is_relative_to(ROOT / "benchmarks" / "results")]
    assert [path.name for path in results if path.suffix == ".json" and path.name != "summary.json"] == []
    sizes = {path.parent.name: path.stat().st_size for path in results if path.name == "summary.json"}
    assert sizes
    assert {name: size for name, size in sizes.items() if size >= MAX_SUMMARY_BYTES} == {}
