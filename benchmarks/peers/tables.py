"""Engines side by side: rows from their samples, and the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.engines import Absent
from benchmarks.peers.neighbours import Neighbour
from benchmarks.peers.turns import OURS, PeerSample
from outpace.measure.bench.files import SCHEMA, write_json
from outpace.measure.bench.medians import Spread
from outpace.measure.bench.rows import Speedup, speedup_of
from outpace.measure.bench.sample import PLAIN
from outpace.measure.bench.tables import origin, ratio_cell
from outpace.measure.markdown import table
from outpace.measure.output_file import save


@dataclass(frozen=True, slots=True)
class PeerRow:
    """One engine and variant over all prompts.

    over_plain: its tokens/s / those of our plain decoding, same batch and repeat. agreed: part of its tokens before the
    first that differs from our plain decoding's (other arithmetic, other weights: not expected to be all).
    """

    engine: str
    variant: str
    calls: int
    rate: Spread
    prefill_rate: Spread | None  # None: of batches
    over_plain: Speedup
    prefill_over_plain: Speedup | None
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
                over_plain=speedup_of([a.rate / b.rate for a, b in pairs]),
                prefill_over_plain=speedup_of(by_ours) if by_ours else None,
                agreed=sum(s.agreed for s in own) / sum(s.tokens for s in own),
                about=about.get((engine, variant), {}),
            )
        )
    return rows


@dataclass(frozen=True, slots=True)
class Report:
    """All that a run of peers found. design: what was written, in a sentence. neighbours: None: not checked."""

    rows: Sequence[PeerRow]
    absent: Sequence[Absent]
    neighbours: Sequence[Neighbour] | None
    waiting: float  # processor seconds of engines that waited / seconds of those that wrote, at most in any row
    provenance: dict[str, Any]
    design: str
    complete: bool

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        neighbours = None if self.neighbours is None else [asdict(own) for own in self.neighbours]
        return {
            "schema": SCHEMA,
            "kind": "peers",
            "complete": self.complete,
            "provenance": self.provenance,
            "design": self.design,
            "summary": [asdict(row) for row in self.rows],
            "absent": [asdict(own) for own in self.absent],
            "waiting": self.waiting,
            "neighbours": neighbours,
        }


def waiting_share(samples: Sequence[PeerSample]) -> float:
    """Return how busy the waiting engines were while an engine wrote: at most, over all engines and variants."""
    shares = [0.0]
    for name in {(s.engine, s.variant) for s in samples}:
        own = [s for s in samples if (s.engine, s.variant) == name]
        shares.append(sum(s.waiting for s in own) / sum(s.seconds for s in own))
    return max(shares)


def peers_markdown(report: Report) -> str:
    """Return the report for people."""
    parts = ["# Engines side by side", origin(report.provenance)]
    if not report.complete:
        parts.append("**The run was cut short: this is what it had.**")
    parts += [
        f"{report.design} Greedy, same prompt tokens, same number of threads; engines take turns on every batch. "
        "Tokens/s: after the first token; of batches, all sequences together and over the whole call, prompts "
        "included; median and middle half. Relative to Outpace plain: its tokens/s / those of our plain decoding, "
        "median of pairs, with the 95 % interval. Prefill: prompt tokens until the first token. Agreed: tokens before "
        "the first that differs from ours.",
        _rows_table(report.rows),
        "## Neighbours",
        "Engines that are not asked are suspended. While one wrote, all others together kept a processor busy for at "
        f"most {report.waiting:.1%} of its time.",
        *_neighbours(report.neighbours),
    ]
    if report.absent:
        parts += ["## Not measured", "\n".join(f"* {a.engine}, {a.variant}: {a.reason}" for a in report.absent)]
    return "\n\n".join(parts) + "\n"


def _rows_table(rows: Sequence[PeerRow]) -> str:
    head = (
        "engine", "version", "weights", "variant", "settings", "calls", "tokens/s", "relative to Outpace plain",
        "prefill, tokens/s", "relative to Outpace", "agreed",
    )  # fmt: skip
    lines = [
        (
            row.engine,
            row.about.get("version", ""),
            row.about.get("weights", ""),
            row.variant,
            row.about.get("settings", ""),
            row.calls,
            _spread(row.rate),
            ratio_cell(row.over_plain),
            _spread(row.prefill_rate),
            ratio_cell(row.prefill_over_plain),
            f"{row.agreed:.0%}",
        )
        for row in rows
    ]
    return table(head, lines)


def _neighbours(neighbours: Sequence[Neighbour] | None) -> list[str]:
    if neighbours is None:
        return ["No A/A run was made."]
    head = ("engine", "variant", "ours right after it / after a pause", "it right after ours / after a pause", "")
    lines = [
        (n.engine, n.variant, ratio_cell(n.ours), ratio_cell(n.its), "**DISTURBED**" if n.disturbed else "")
        for n in neighbours
    ]
    return [
        "A/A run: the same engine writes the same tokens right after a neighbour wrote, and after a pause. 1 means "
        "that a neighbour which waits costs nothing; pairs whose interval lies beyond 3 % are marked.",
        table(head, lines),
    ]


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return ""
    return f"{spread.median:.0f} ({spread.low:.0f} to {spread.high:.0f})"


def save_peers(folder: Path, report: Report, samples: Sequence[PeerSample], name: str = "peers") -> None:
    """Write NAME.json, every sample included, and NAME.md into `folder`."""
    write_json(folder / f"{name}.json", {**report.as_dict(), "samples": [asdict(sample) for sample in samples]})
    save(folder / f"{name}.md", peers_markdown(report))
