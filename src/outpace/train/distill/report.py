"""What a run of distillation says: its card, and the frontier of several students, quality against speed."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outpace.errors import UsageError
from outpace.measure.markdown import table as markdown
from outpace.train.report.card import machine_part, made_by

_HEAD = ("", "parameters", "bytes", "tokens/s", "perplexity", "agreement", "arithmetic", "copy", "edit", "repetition")

Result = Mapping[str, Any]


def card(result: Result, command: str) -> str:
    """Return the card as Markdown. result: of `result.json`."""
    origin, options, draft = result["origin"], result["options"], result["draft"]
    measured, before = result["measured"], result["before"]
    teacher = origin["model"]
    layers = "of its own" if result["layers"] is None else ", ".join(map(str, result["layers"]))
    parts = [
        f"# A student of {teacher['name']}",
        f"{made_by(command, origin)} Teacher: {teacher['bytes'] / 1e6:.0f} MB, SHA-256 {teacher['sha256'][:16]}. "
        f"Student: layers {layers}; {result['feed_forward_width']} neurons of each feed-forward. "
        "Its text is not the teacher's: used alone it is lossy. As a draft model it changes no token.",
        "## Quality and speed",
        card_table(result),
        "Perplexity of held-out text that the teacher wrote; agreement of the most likely tokens there "
        f"({measured['positions']} positions; untrained: {before['top1']:.1%}). Exact match on small tasks. Speed: "
        "plain decoding, one request at a time, median of five turns.",
        "## As a draft model",
        markdown(
            ("", "tokens per step", "tokens/s", "relative to plain"),
            [
                ("simulated", f"{measured['tokens_per_step']:.2f}", "", ""),
                (
                    f"decoded, {draft['conversations']} conversations",
                    f"{draft['tokens_per_step']:.2f}",
                    f"{draft['speed']:.1f}",
                    f"{draft['speed'] / result['teacher']['speed']:.2f}",
                ),
            ],
        ),
        f"Drafts of at most {options['max_draft']} tokens, greedy; {draft['same']} of {draft['conversations']} "
        "conversations were written token by token as before.",
        "## Training",
        f"{result['steps']} steps, {result['positions']} positions, {result['seconds'] / 60:.1f} minutes on "
        f"{result['device']}. Options: " + ", ".join(f"`{name}` {value}" for name, value in options.items()) + ".",
        "## Machine",
        machine_part(origin),
    ]
    return "\n\n".join(parts) + "\n"


def card_table(result: Result) -> str:
    """Return teacher and student as a Markdown table."""
    return markdown(_HEAD, rows(result))


def rows(result: Result, name: str = "student") -> list[tuple[str, ...]]:
    """Return the rows of teacher and student."""
    measured = result["measured"]
    return [
        _row("teacher", result["teacher"], measured["teacher_perplexity"], 1.0),
        _row(name, result["student"], measured["perplexity"], measured["top1"]),
    ]


def _row(name: str, own: Mapping[str, Any], perplexity: float, agreement: float) -> tuple[str, ...]:
    right = (f"{own['right'][kind]:.0%}" for kind in ("arithmetic", "copy", "edit"))
    return (
        name,
        f"{own['parameters'] / 1e6:.1f} M",
        f"{own['bytes'] / 1e6:.1f} MB",
        f"{own['speed']:.1f}",
        f"{perplexity:.2f}",
        f"{agreement:.1%}",
        *right,
        f"{own['repetition']:.1%}",
    )


def read_results(folders: Sequence[Path]) -> dict[str, Result]:
    """Return the results of finished runs by their folder's name. Raises UsageError for a folder without one."""
    found: dict[str, Result] = {}
    for folder in folders:
        path = folder / "result.json"
        try:
            found[folder.name] = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{folder}: holds no finished run of `outpace distill` ({error.strerror})") from error
        except ValueError as error:
            raise UsageError(f"{path}: is damaged ({error})") from error
    targets = {result["origin"]["model"]["sha256"] for result in found.values()}
    if len(targets) > 1:
        raise UsageError("these students have different teachers, so one picture would not compare them")
    return found


def table(results: Mapping[str, Result]) -> str:
    """Return all students and their teacher, the fastest first, with what each brings as a draft model."""
    ordered = sorted(results.items(), key=lambda own: -float(own[1]["student"]["speed"]))
    first = next(iter(results.values()))
    head = (*_HEAD, "tokens per step as draft", "speed as draft, relative to plain")
    lines = [(*rows(first)[0], "", "")]
    for name, result in ordered:
        draft = result["draft"]
        ratio = draft["speed"] / result["teacher"]["speed"]
        lines.append((*rows(result, name)[1], f"{draft['tokens_per_step']:.2f}", f"{ratio:.2f}"))
    return markdown(head, lines)


def frontier(results: Mapping[str, Result]) -> bytes:
    """Return a PNG file: perplexity and agreement of each student against its speed, relative to its teacher's.

    Needs matplotlib, which the extra `outpace[train]` brings.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    ordered = sorted(results.items(), key=lambda own: float(own[1]["student"]["speed"] / own[1]["teacher"]["speed"]))
    speeds = [1.0, *(own["student"]["speed"] / own["teacher"]["speed"] for _, own in ordered)]
    names = ["teacher", *(name for name, _ in ordered)]
    first = ordered[0][1]["measured"]["teacher_perplexity"]
    curves = (
        (left, [first, *(own["measured"]["perplexity"] for _, own in ordered)]),
        (right, [1.0, *(own["measured"]["top1"] for _, own in ordered)]),
    )
    for axes, values in curves:
        axes.plot(speeds, values, marker="o")
        for name, x, y in zip(names, speeds, values, strict=True):
            axes.annotate(name, (x, y), textcoords="offset points", xytext=(6, 6))
    left.set(title="Perplexity of the teacher's text", xlabel="speed, relative to the teacher", yscale="log")
    right.set(title="Agreement with the teacher", xlabel="speed, relative to the teacher", ylim=(0, 1.05))
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    return picture.getvalue()
