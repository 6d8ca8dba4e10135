"""One picture of a training: loss, accuracy by depth, and simulated tokens per step on held-out text."""

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
    loss, accuracy, simulated = figure.subplots(1, 3)
    learned = [entry for entry in entries if entry["accuracy_by_depth"]]
    if learned:
        steps = means([entry["step"] for entry in learned])
        loss.plot(steps, means([entry["loss"] for entry in learned]))
        for depth in range(len(learned[0]["accuracy_by_depth"])):
            own = means([entry["accuracy_by_depth"][depth] for entry in learned])
            accuracy.plot(steps, own, label=f"depth {depth + 1}")
        accuracy.legend()
    measured = [entry for entry in entries if entry["simulated"] is not None]
    simulated.plot([entry["step"] for entry in measured], [entry["simulated"] for entry in measured], marker="o")
    loss.set(title="Loss", xlabel="step")
    accuracy.set(title="Guesses that are right", xlabel="step", ylim=(0, 1))
    simulated.set(title="Simulated tokens per step, held-out", xlabel="step")
    figure.suptitle(title)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    return picture.getvalue()


def means(values: Sequence[float]) -> list[float]:
    """Return at most `_POINTS` means of neighbours."""
    parts = np.array_split(np.array(values, np.float64), min(_POINTS, len(values)))
    return [float(np.mean(part)) for part in parts]
