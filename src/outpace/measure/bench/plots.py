"""Pictures of a run. They need matplotlib (`pip install outpace[bench]`)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from outpace.errors import UsageError
from outpace.measure.bench.growth import Growth
from outpace.measure.bench.quality import Row as QualityRow
from outpace.measure.bench.rows import ALL, Row
from outpace.measure.bench.sample import PLAIN, Condition
from outpace.measure.bench.tables import title
from outpace.trace import PHASES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMES = dict(zip(PHASES, ("draft", "forward", "verify", "rest"), strict=True))


def available() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401 -- only whether it is there
    except ImportError:
        return False
    return True


def plot_bench(rows: Sequence[Row]) -> dict[str, bytes]:
    """Draw speed-ups by category and the split of time for each condition; return PNG files by name."""
    pictures = {}
    for number, condition in enumerate(dict.fromkeys(row.condition for row in rows)):
        own = [row for row in rows if row.condition == condition]
        pictures[f"speedup-{number}-{_slug(condition)}.png"] = _png(_speedups(own, condition))
        pictures[f"split-{number}-{_slug(condition)}.png"] = _png(_split(own, condition))
    return pictures


def plot_growth(curves: Sequence[Growth]) -> bytes:
    """Draw milliseconds of the n-th token, with the cache and without it, both axes logarithmic; return a PNG file."""
    figure, axes = _figure(7, 4.5)
    for curve in curves:
        middle, low, high = ([getattr(s, name) * 1e3 for s in curve.seconds] for name in ("median", "low", "high"))
        slope = "" if curve.exponent is None else f", ~ n^{curve.exponent:.2f}"
        (line,) = axes.plot(curve.sizes, middle, marker="o", label=f"{curve.way}{slope}")
        axes.fill_between(curve.sizes, low, high, alpha=0.2, color=line.get_color())
    axes.set(xscale="log", yscale="log", xlabel="tokens before it", ylabel="milliseconds of a token")
    axes.set_xticks(curves[0].sizes, [str(n) for n in curves[0].sizes], rotation=45)
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title("What the n-th token costs")
    axes.legend()
    return _png(figure)


def plot_quality(rows: Sequence[QualityRow]) -> bytes:
    """Draw perplexity and the share of tasks answered right against speed; a dial's points make a curve. PNG file."""
    figure, axes = _figure(8, 8, 2)
    for own, value_of in zip(axes, (_perplexity, _right), strict=True):
        for row in rows:
            if row.way.dial is None and (value := value_of(row)) is not None:
                own.plot(row.rate.median, value, "s" if row.way.is_lossless else "o", label=row.way.name)
        for name in dict.fromkeys(row.way.curve for row in rows if row.way.dial is not None):
            curve = [row for row in rows if row.way.dial is not None and row.way.curve == name]
            points = [(row.rate.median, value, row.way.dial) for row in curve if (value := value_of(row)) is not None]
            own.plot([x for x, _, _ in points], [y for _, y, _ in points], marker="o", label=f"{name} (lossy)")
            for x, y, dial in points:
                own.annotate(f"{dial:g}", (x, y), fontsize=7)
    axes[0].set(yscale="log", ylabel="perplexity under the original model (lower is better)", title="Quality and speed")
    axes[1].set(xlabel="tokens per second", ylabel="share of small tasks right")
    axes[0].legend(fontsize=8)
    return _png(figure)


def _perplexity(row: QualityRow) -> float | None:
    return row.perplexity


def _right(row: QualityRow) -> float | None:
    return sum(row.exact.values()) / len(row.exact) if row.exact else None


def _speedups(rows: Sequence[Row], condition: Condition) -> Figure:
    categories = list(dict.fromkeys(row.category for row in rows))
    strategies = [name for name in dict.fromkeys(row.strategy for row in rows) if name != PLAIN]
    figure, axes = _figure(2 + 0.9 * len(categories), 4.5)
    width = 0.8 / max(len(strategies), 1)
    for i, strategy in enumerate(strategies):
        found = {row.category: row.numbers.speedup for row in rows if row.strategy == strategy and row.numbers}
        for j, category in enumerate(categories):
            speedup = found.get(category)
            if speedup is None:
                continue
            errors = None
            if speedup.interval is not None:
                low, high = speedup.interval
                errors = [[speedup.median - low], [high - speedup.median]]
            axes.bar(
                j + (i - (len(strategies) - 1) / 2) * width, speedup.median, width * 0.9, color=f"C{i}",
                yerr=errors, capsize=2,
                label=strategy if category == ALL else None,
            )  # fmt: skip
    axes.axhline(1, color="black", linewidth=1)
    axes.set_xticks(range(len(categories)), categories, rotation=30, ha="right")
    axes.set(ylabel="speed-up over plain decoding", title=title(condition))
    if axes.patches:  # a cut run may have none
        axes.legend()
    return figure


def _split(rows: Sequence[Row], condition: Condition) -> Figure:
    own = {row.strategy: row.numbers for row in rows if row.category == ALL and row.numbers}
    figure, axes = _figure(6, 1.5 + 0.5 * len(own))
    left = [0.0] * len(own)
    for phase in PHASES:
        widths = [1e3 / numbers.rate.median * numbers.split[phase] for numbers in own.values()]
        axes.barh(list(own), widths, left=left, label=_NAMES[phase])
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds per token", title=title(condition))
    if own:
        figure.legend(loc="outside lower center", ncols=len(PHASES))
    return figure


def _figure(width: float, height: float, panels: int = 1) -> tuple[Figure, Any]:
    """Return an empty picture that knows nothing of screens, and its axes; of several panels a list."""
    if not available():
        raise UsageError("plots need matplotlib: pip install 'outpace[bench]'")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot() if panels == 1 else figure.subplots(panels, sharex=True)


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format="png")
    return picture.getvalue()


def _slug(condition: Condition) -> str:
    return f"{condition.sampling}-batch{condition.batch}-context{condition.context}"
