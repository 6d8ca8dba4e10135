"""One picture of a training: its loss, how many guesses are right, and its score on held-out text."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

_POINTS = 200  # on a curve: each is the mean of a stretch of steps


def plot(entries: Sequence[dict[str, Any]], title: str) -> bytes:
    """Return a PNG file of a log's entries (`log.Log`). Needs matplotlib, which the extra `outpace[train]` brings."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    loss, accuracy, score = figure.subplots(1, 3)
    learned = [entry for entry in entries if entry["positions"]]
    if learned:
        steps = _means([entry["step"] for entry in learned])
        loss.plot(steps, _means([entry["loss"] for entry in learned]))
        for name, curve in _accuracies(learned):
            accuracy.plot(steps, _means(curve), label=name)
    measured = [entry for entry in entries if entry["measured"] is not None]
    score.plot([entry["step"] for entry in measured], [entry["measured"]["score"] for entry in measured], marker="o")
    loss.set(title="Loss", xlabel="step")
    accuracy.set(title="Guesses that are right", xlabel="step", ylim=(0, 1))
    if len(accuracy.lines) > 1:
        accuracy.legend()
    if not accuracy.lines:
        accuracy.remove()
    score.set(title="Score on held-out text", xlabel="step")
    figure.suptitle(title)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    return picture.getvalue()


def _accuracies(entries: Sequence[dict[str, Any]]) -> list[tuple[str, list[float]]]:
    """Return the curves of steps that learned: for each depth of a drafter's guesses, for all of an adapter's."""
    if "accuracy" in entries[0]:
        return [("all", [entry["accuracy"] for entry in entries])]
    depths = range(min(len(entry.get("accuracy_by_depth", ())) for entry in entries))
    return [(f"depth {k + 1}", [entry["accuracy_by_depth"][k] for entry in entries]) for k in depths]


def _means(values: Sequence[float]) -> list[float]:
    """Return at most `_POINTS` means of neighbours."""
    parts = np.array_split(np.array(values, np.float64), min(_POINTS, len(values)))
    return [float(np.mean(part)) for part in parts]
