"""Rows as Markdown tables: speed-ups by category first, then everything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from outpace.measure.bench.growth import Growth
from outpace.measure.bench.router_comparison import RouterComparison
from outpace.measure.bench.rows import ALL, Row, Speedup
from outpace.measure.bench.sample import PLAIN, Condition
from outpace.measure.markdown import table
from outpace.trace import PHASES

_LEGEND = (
    "Speed-up: plain decoding's time / this one's, median of calls that alternated on the same prompts, with the 95 % "
    "interval of that median. Tokens/s: decoding, median and middle half. Split: parts of the decoding time. "
    "Bandwidth: bytes read per second of decoding / what a streaming read reached in the same minute. "
    "Calls that did not write plain decoding's tokens do not count, and are named."
)
_BEST_FIXED = (
    "The best fixed strategy of a category (plain decoding may be it) is chosen on one half of the repeats and "
    "compared on the other, both ways round."
)


def origin(provenance: dict[str, Any]) -> str:
    """Return a paragraph that says where the numbers come from."""
    p = provenance
    isa = f", {p['isa']}" if p["isa"] else ""
    machine = p["machine"]
    return (
        f"{p['date']}, Outpace {p['outpace']} ({p['commit'] or 'no checkout'}), {p['model']['name']} "
        f"({p['model']['bytes'] / 1e6:.0f} MB, SHA-256 {p['model']['sha256'][:16]}), {p['ops']} ops{isa}, "
        f"{p['threads']} threads on {machine['cpu']} ({machine['system']}, load {machine['load_average']})."
    )


def report(title: str, provenance: dict[str, Any], complete: bool, parts: Iterable[str]) -> str:
    """Return a page of paragraphs and tables under a title, with where its numbers come from."""
    cut = () if complete else ("**The run was cut short: this is what it had.**",)
    return "\n\n".join((f"# {title}", origin(provenance), *cut, *parts)) + "\n"


def bench_markdown(
    rows: Sequence[Row], comparisons: Sequence[RouterComparison], provenance: dict[str, Any], complete: bool
) -> str:
    """Return the report of a bench run."""
    parts = [_LEGEND]
    for condition in dict.fromkeys(row.condition for row in rows):
        own = [row for row in rows if row.condition == condition]
        parts += [f"## {title(condition)}", _speedups(own)]
        if routed := [comparison for comparison in comparisons if comparison.condition == condition]:
            parts += ["### `auto` / plain decoding, and `auto` / the best fixed strategy", _BEST_FIXED, _router(routed)]
        parts += ["### Everything", _everything(own)]
    return report("Bench", provenance, complete, parts)


def headlines(rows: Sequence[Row]) -> list[str]:
    """Return a line per condition and strategy, over all categories."""
    return [f"{title(row.condition)}: {row.strategy}: {_headline(row)}" for row in rows if row.category == ALL]


def _headline(row: Row) -> str:
    if row.numbers is None:
        return "NO call wrote plain decoding's tokens"
    speedup = f", speed-up {ratio_cell(row.numbers.speedup)}" if row.numbers.speedup else ""
    calls = "1 call" if row.unequal == 1 else f"{row.unequal} calls"
    unequal = f"; not counted: {calls} that wrote OTHER TOKENS" if row.unequal else ""
    return f"{row.numbers.rate.median:.0f} tokens/s{speedup}{unequal}"


def title(condition: Condition) -> str:
    """Return a condition in words."""
    context = f", at least {condition.context} tokens of prompt" if condition.context else ""
    return f"{condition.sampling.capitalize()}, batch {condition.batch}{context}"


def _speedups(rows: Sequence[Row]) -> str:
    strategies = [name for name in dict.fromkeys(row.strategy for row in rows) if name != PLAIN]
    by_key = {(row.category, row.strategy): row.numbers for row in rows}
    lines = []
    for category in dict.fromkeys(row.category for row in rows):
        plain, *others = (by_key.get((category, name)) for name in (PLAIN, *strategies))
        cells = [ratio_cell(numbers.speedup) if numbers else "" for numbers in others]
        lines.append((_strong(category), f"{plain.rate.median:.0f}" if plain else "", *cells))
    return table(("category", "plain, tokens/s", *strategies), lines)


def _router(comparisons: Sequence[RouterComparison]) -> str:
    head = ("category", "pairs", "auto / plain", "auto / best fixed", "best fixed, on each half")
    return table(
        head,
        [
            (_strong(s.category), s.pairs, ratio_cell(s.plain), ratio_cell(s.best), ", ".join(dict.fromkeys(s.chosen)))
            for s in comparisons
        ],
    )


def _everything(rows: Sequence[Row]) -> str:
    head = (
        "category", "strategy", "calls", "tokens/s", "speed-up", "whole call", "tokens per step", "accepted",
        "draft / forward / verify / rest", "MB per token", "bandwidth", "first token, ms",
    )  # fmt: skip
    return table(head, [_row(row) for row in rows])


def _row(row: Row) -> tuple[Any, ...]:
    calls = f"{row.calls}, {row.unequal} UNEQUAL" if row.unequal else row.calls
    if row.numbers is None:
        return (_strong(row.category), row.strategy, calls, *[""] * 9)
    n = row.numbers
    return (
        _strong(row.category),
        row.strategy,
        calls,
        f"{n.rate.median:.0f} ({n.rate.low:.0f} to {n.rate.high:.0f})",
        ratio_cell(n.speedup),
        ratio_cell(n.whole),
        f"{n.tokens_per_step:.2f}",
        "" if n.acceptance is None else f"{n.acceptance:.0%}",
        " / ".join(f"{n.split[phase]:.0%}" for phase in PHASES),
        f"{n.bytes_per_token / 1e6:.1f}",
        f"{n.bandwidth_fraction:.0%}",
        f"{n.first_seconds * 1e3:.0f}",
    )


def ratio_cell(speedup: Speedup | None) -> str:
    """Return a speed-up with its interval, for a table."""
    if speedup is None:
        return ""
    interval = f" ({speedup.interval[0]:.2f} to {speedup.interval[1]:.2f})" if speedup.interval else ""
    return f"{speedup.median:.2f}{interval}"


def _strong(category: str) -> str:
    return f"**{category}**" if category == ALL else category


def growth_markdown(curves: Sequence[Growth], lines: Sequence[str], provenance: dict[str, Any], complete: bool) -> str:
    """Return the report of a growth run."""
    head = ("tokens before", *(f"{c.way}, ms (middle half)" for c in curves), "ratio")
    body = []
    for i, n in enumerate(curves[0].sizes if curves else ()):
        spreads = [c.seconds[i] for c in curves]
        cells = [f"{s.median * 1e3:.2f} ({s.low * 1e3:.2f} to {s.high * 1e3:.2f})" for s in spreads]
        body.append((n, *cells, f"{spreads[1].median / spreads[0].median:.1f}"))
    return report("What the n-th token costs", provenance, complete, (*lines, table(head, body)))
