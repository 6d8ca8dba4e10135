"""Engines side by side: rows from their samples, and the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from outpace.bench.peers import OURS, Absent, PeerSample
from outpace.bench.sample import PLAIN
from outpace.bench.statistics import Spread, median, median_interval
from outpace.bench.summary import Speedup
from outpace.bench.tables import origin, table


@dataclass(frozen=True, slots=True)
class PeerRow:
    """One engine and variant over all prompts.

    agreed: share of its tokens before the first that differs from our plain decoding's (other arithmetic, other
    weights: not expected to be all).
    """

    engine: str
    variant: str
    calls: int
    rate: Spread
    first_seconds: float
    by_plain: Speedup  # its tokens/s by those of our plain decoding, same prompt and repeat
    agreed: float
    about: dict[str, str]


def summarise_peers(samples: Sequence[PeerSample], about: dict[tuple[str, str], dict[str, str]]) -> list[PeerRow]:
    """Return a row per engine and variant; about: version and weights of each."""
    plain = {(s.prompt, s.repeat): s.rate for s in samples if (s.engine, s.variant) == (OURS, PLAIN)}
    rows = []
    for engine, variant in dict.fromkeys(sorted((s.engine, s.variant) for s in samples)):
        own = [s for s in samples if (s.engine, s.variant) == (engine, variant)]
        ratios = [s.rate / plain[s.prompt, s.repeat] for s in own if (s.prompt, s.repeat) in plain]
        if not ratios:
            continue  # cut short before our own call of that prompt
        rows.append(
            PeerRow(
                engine=engine,
                variant=variant,
                calls=len(own),
                rate=Spread.of([s.rate for s in own]),
                first_seconds=median(s.first_seconds for s in own),
                by_plain=Speedup(median(ratios), median_interval(ratios)),
                agreed=sum(s.agreed for s in own) / sum(s.tokens for s in own),
                about=about.get((engine, variant), {}),
            )
        )
    return rows


def peers_markdown(
    rows: Sequence[PeerRow], absent: Sequence[Absent], provenance: dict[str, Any], complete: bool
) -> str:
    """Return the report of a peers run."""
    head = (
        "engine",
        "version",
        "weights",
        "variant",
        "calls",
        "tokens/s",
        "by our plain decoding",
        "first token, ms",
        "agreed",
    )
    lines = [
        (
            row.engine,
            row.about.get("version", ""),
            row.about.get("weights", ""),
            row.variant,
            row.calls,
            f"{row.rate.median:.0f} ({row.rate.low:.0f} to {row.rate.high:.0f})",
            f"{row.by_plain.median:.2f}"
            + (f" ({row.by_plain.interval[0]:.2f} to {row.by_plain.interval[1]:.2f})" if row.by_plain.interval else ""),
            f"{row.first_seconds * 1e3:.0f}",
            f"{row.agreed:.0%}",
        )
        for row in rows
    ]
    parts = [
        "# Engines side by side",
        origin(provenance),
        "Greedy, one text at a time, same prompt tokens, same number of threads; engines alternate on every prompt. "
        "Tokens/s: after the first token, median and middle half. By our plain decoding: median of pairs, with the "
        "95 % interval. Agreed: tokens before the first that differs from ours.",
        table(head, lines),
    ]
    if not complete:
        parts.insert(2, "**The run was cut short: this is what it had.**")
    if absent:
        parts += ["## Not measured", "\n".join(f"* {a.engine}, {a.variant}: {a.reason}" for a in absent)]
    return "\n\n".join(parts) + "\n"


def peers_dict(rows: Sequence[PeerRow], absent: Sequence[Absent]) -> dict[str, Any]:
    """Return the rows as plain JSON values."""
    return {"summary": [asdict(row) for row in rows], "absent": [asdict(a) for a in absent]}
