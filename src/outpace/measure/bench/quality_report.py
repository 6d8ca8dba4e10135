"""The report of quality beside speed: one table, one picture, one JSON file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outpace.measure.bench import plots
from outpace.measure.bench.files import save_run
from outpace.measure.bench.quality import Design, Row, Sample, Way, summarise_quality
from outpace.measure.bench.tables import report
from outpace.measure.markdown import table
from outpace.measure.output_file import save

_LEGEND = (
    "Greedy text, every way in turn on each prompt. Tokens/s: decoding, without a text's first pass; speed-up: "
    "relative to plain decoding (none). Passes per token: of the original model (of a student: its own); those in "
    "which a drafter drafts are not counted. Perplexity: of the text under the original model; low together with much "
    "repetition means a loop. Right: share of small tasks (sums, copies, edits) answered exactly. Repetition: share "
    "of runs of four tokens that the text had before. Same text: share of texts that are plain decoding's."
)


def save_quality(
    folder: Path,
    samples: Sequence[Sample],
    ways: Sequence[Way],
    design: Design,
    provenance: dict[str, Any],
    complete: bool,
) -> list[Row]:
    """Write quality.json, quality.md and (with matplotlib) quality.png into `folder`; return the rows."""
    rows = summarise_quality(samples, ways)
    summary = [row.as_dict() for row in rows]
    save_run(folder, "quality", complete, provenance, {"design": design, "summary": summary, "samples": samples})
    save(folder / "quality.md", quality_markdown(rows, provenance, complete))
    if rows and plots.available():
        save(folder / "quality.png", plots.plot_quality(rows))
    return rows


def quality_markdown(rows: Sequence[Row], provenance: dict[str, Any], complete: bool) -> str:
    """Return the report: lossless rows and lossy rows apart."""
    parts = [_LEGEND]
    for title, is_lossless in (("Lossless: plain decoding's text", True), ("Lossy: another text", False)):
        if own := [row for row in rows if row.way.is_lossless == is_lossless]:
            parts += [f"## {title}", quality_table(own)]
    return report("Quality and speed", provenance, complete, parts)


def quality_table(rows: Sequence[Row]) -> str:
    """Return the rows as a table."""
    kinds = list(dict.fromkeys(kind for row in rows for kind in row.exact))
    head = ("", "tokens/s", "speed-up", "passes per token", "perplexity", *(f"{kind}, right" for kind in kinds))
    return table((*head, "repetition", "same text"), [_cells(row, kinds) for row in rows])


def _cells(row: Row, kinds: Sequence[str]) -> list[str]:
    return [
        row.way.name + (f" ({row.unequal} UNEQUAL)" if row.unequal else ""),
        f"{row.rate.median:.1f}",
        f"{row.speedup:.2f}",
        f"{row.passes_per_token:.2f}",
        "" if row.perplexity is None else f"{row.perplexity:.2f}",
        *(f"{row.exact[kind]:.0%}" if kind in row.exact else "" for kind in kinds),
        f"{row.repetition:.0%}",
        f"{row.same_text:.0%}",
    ]


def quality_lines(rows: Sequence[Row]) -> list[str]:
    """Return a line per way, as the command prints it."""
    lines = []
    for row in rows:
        right = ", ".join(f"{kind} {share:.0%}" for kind, share in row.exact.items())
        kind = "lossless" if row.way.is_lossless else "LOSSY"
        unequal = f"; {row.unequal} texts were NOT plain decoding's" if row.unequal else ""
        text = "" if row.perplexity is None else f", perplexity {row.perplexity:.2f}, repetition {row.repetition:.0%}"
        lines.append(
            f"{row.way.name}: {kind}, {row.rate.median:.1f} tokens/s ({row.speedup:.2f} x plain), "
            f"{row.passes_per_token:.2f} passes per token{text}{', right: ' + right if right else ''}{unequal}"
        )
    return lines
