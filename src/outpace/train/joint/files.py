"""Where the adapter of a tuned target lies."""

from __future__ import annotations

from pathlib import Path


def beside(drafter: Path) -> Path:
    """Return the file of the adapter that was trained together with a drafter, for the drafter's file in a run."""
    return drafter.with_suffix(".adapter.gguf")
