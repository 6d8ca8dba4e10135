"""Samples made by hand."""

from __future__ import annotations

from typing import Any

from outpace.measure.bench.sample import Condition, Sample

GREEDY = Condition("greedy", 1, 0)
ORIGIN = {
    "date": "today", "outpace": "0", "commit": None, "ops": "reference", "isa": None, "threads": 1,
    "model": {"name": "tiny", "bytes": 5, "sha256": "ab"}, "machine": {"cpu": "c", "system": "s", "load_average": 0.0},
}  # fmt: skip


def sample(strategy: str, group: int, rate: float, **overrides: Any) -> Sample:
    """Return a sample of 100 tokens in as many steps at `rate` tokens per second, half of the time in forward."""
    seconds = 100 / rate
    phases = {"draft": 0.1 * seconds, "forward": 0.5 * seconds, "verify": 0.3 * seconds, "commit": 0.1 * seconds}
    values: dict[str, Any] = {
        "condition": GREEDY, "strategy": strategy, "category": "chat", "group": group, "repeat": 0, "prompts": (0,),
        "prompt_tokens": 30, "tokens": 101, "seconds": seconds + 0.1, "first_seconds": 0.1, "decode_tokens": 100,
        "decode_seconds": seconds, "steps": 100, "verified": 0, "accepted": 0, "phases": phases,
        "num_bytes": 1_000_000_000, "bandwidth": 10.0,
    }  # fmt: skip
    return Sample(**(values | overrides))
