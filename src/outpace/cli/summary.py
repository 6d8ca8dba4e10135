"""The line below a text: what it took, and what went wrong without changing it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from outpace.cli.colors import DIM, painted
from outpace.cli.messages import with_options
from outpace.cli.streams import note

if TYPE_CHECKING:
    from outpace.api import Result


def summarise(result: Result, *, sampled: bool = False) -> None:
    """Tell on standard error what a text took, and the seed of a sampled one, which writes it again."""
    stats = result.stats
    speed = f", {rate:.1f} tokens/s" if (rate := stats.decode_tokens_per_second) else ""
    if result.verification == "none":
        took = f"{stats.passes} passes, {stats.passes_per_token:.2f} passes per token"
        lossy = "; lossy: refined, not verified"
    else:
        per_step = f", {stats.tokens_per_step:.2f} tokens per step" if stats.steps else ""
        took = f"{stats.steps} steps{per_step}"
        lossy = "; lossy: typical acceptance" if result.verification == "typical" and not result.lossless else ""
    seed = f"; seed {result.seed}" if sampled else ""
    line = f"[{stats.tokens} tokens in {took}{speed}; {result.finish_reason}{lossy}{seed}]"
    note(painted(line, DIM, sys.stderr))
    for warning in stats.warnings:
        note(f"warning: {with_options(warning)}")
