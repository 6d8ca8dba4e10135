"""Engines side by side: rows from their samples, and the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.engines import OURS, Absent, PeerSample
from outpace.measure.bench.files import SCHEMA, write_json
from outpace.measure.bench.medians import Spread, median, median_interval
from outpace.measure.bench.rows import Speedup
from outpace.measure.bench.sample import PLAIN
from outpace.measure.bench.tables import origin, ratio_cell, table


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
    prefill_rate: Spread | None  # None: of batches
    by_plain: Speedup  # its tokens/s by those of our plain decoding, same batch and repeat
    prefill_by_plain: Speedup | None
    agreed: float
    about: dict[str, str]


def summarise_peers(samples: Sequence[PeerSample], about: dict[tuple[str, str], dict[str, str]]) -> list[PeerRow]:
    """Return a row per engine and variant; about: version and weights of each."""
    plain = {(s.group, s.repeat): s for s in samples if (s.engine, s.variant) == (OURS, PLAIN)}
    rows = []
    for engine, variant in dict.fromkeys(sorted((s.engine, s.variant) for s in samples)):
        own = [s for s in samples if (s.engine, s.variant) == (engine, variant)]
        pairs = [(s, plain[s.group, s.repeat]) for s in own if (s.group, s.repeat) in plain]
        if not pairs:
            continue  # cut short before our own call of that batch
        prefill = [s.prefill_rate for s in own if s.prefill_rate is not None]
        by_ours = [a.prefill_rate / b.prefill_rate for a, b in pairs if a.prefill_rate and b.prefill_rate]
        rows.append(
            PeerRow(
                engine=engine,
                variant=variant,
                calls=len(own),
                rate=Spread.of([s.rate for s in own]),
                prefill_rate=Spread.of(prefill) if prefill else None,
                by_plain=_speedup([a.rate / b.rate for a, b in pairs]),
                prefill_by_plain=_speedup(by_ours) if by_ours else None,
                agreed=sum(s.agreed for s in own) / sum(s.tokens for s in own),
                about=about.get((engine, variant), {}),
            )
        )
    return rows


def _speedup(ratios: list[float]) -> Speedup:
    return Speedup(median(ratios), median_interval(ratios))


def peers_markdown(
    rows: Sequence[PeerRow], absent: Sequence[Absent], provenance: dict[str, Any], design: str, complete: bool
) -> str:
    """Return the report of a peers run; design: what was written, in a sentence."""
    head = (
        "engine", "version", "weights", "variant", "calls", "tokens/s", "by our plain decoding", "prefill, tokens/s",
        "by ours", "agreed",
    )  # fmt: skip
    lines = [
        (
            row.engine,
            row.about.get("version", ""),
            row.about.get("weights", ""),
            row.variant,
            row.calls,
            _spread(row.rate),
            ratio_cell(row.by_plain),
            _spread(row.prefill_rate),
            ratio_cell(row.prefill_by_plain),
            f"{row.agreed:.0%}",
        )
        for row in rows
    ]
    parts = [
        "# Engines side by side",
        origin(provenance),
        f"{design} Greedy, same prompt tokens, same number of threads; engines alternate on every batch. "
        "Tokens/s: after the first token; of batches, all texts together and over the whole call, prompts included; "
        "median and middle half. By our plain decoding: median of pairs, with the 95 % interval. Prefill: prompt "
        "tokens until the first token. Agreed: tokens before the first that differs from ours.",
        table(head, lines),
    ]
    if not complete:
        parts.insert(2, "**The run was cut short: this is what it had.**")
    if absent:
        parts += ["## Not measured", "\n".join(f"* {a.engine}, {a.variant}: {a.reason}" for a in absent)]
    return "\n\n".join(parts) + "\n"


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return ""
    return f"{spread.median:.0f} ({spread.low:.0f} to {spread.high:.0f})"


def peers_dict(rows: Sequence[PeerRow], absent: Sequence[Absent]) -> dict[str, Any]:
    """Return the rows as plain JSON values."""
    return {"summary": [asdict(row) for row in rows], "absent": [asdict(a) for a in absent]}


def save_peers(
    folder: Path,
    samples: Sequence[PeerSample],
    absent: Sequence[Absent],
    about: dict[tuple[str, str], dict[str, str]],
    provenance: dict[str, Any],
    design: str,
    complete: bool,
    name: str = "peers",
) -> list[PeerRow]:
    """Write NAME.json and NAME.md into `folder`; return the rows.

    about: version and weights of each engine. design: what was written, in a sentence.
    """
    rows = summarise_peers(samples, about)
    write_json(
        folder / f"{name}.json",
        {
            "schema": SCHEMA,
            "kind": "peers",
            "complete": complete,
            "provenance": provenance,
            "design": design,
            **peers_dict(rows, absent),
            "samples": [asdict(sample) for sample in samples],
        },
    )
    report = peers_markdown(rows, absent, provenance, design, complete)
    (folder / f"{name}.md").write_text(report, encoding="utf-8")
    return rows
