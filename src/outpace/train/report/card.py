"""The card of a drafter: what it was made of, how, on what, and what it was measured to bring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from outpace.measure.markdown import table
from outpace.train.ledger import SHARES, Ledger
from outpace.train.options import RunOptions, TrainOptions
from outpace.train.report.forecast import TOLERANCE, Check, Row


def card(
    options: TrainOptions, ledger: Ledger, check: Check, origin: Mapping[str, Any], command: str, num_bytes: int
) -> str:
    """Return the card as Markdown. origin: as `measure.provenance` tells it. num_bytes: of the drafter's file."""
    target = origin["model"]
    parts = [
        f"# A drafter for {target['name']}: `{options.kind}`",
        f"{made_by(command, origin)} {num_bytes / 1e6:.1f} MB. It drafts for this file "
        f"({target['bytes'] / 1e6:.0f} MB, SHA-256 {target['sha256'][:16]}) and for other files of the same model "
        "and vocabulary.",
        *_tuned(options, ledger),
        "## What it brings",
        "Tokens per step (bonus included) on conversations that training did not see, written by the "
        f"{'tuned ' if options.joint else ''}target: forecast "
        f"by simulation, and decoded by the engine with drafts of {options.max_draft} tokens at most.",
        check_table(check),
        verdict(check),
        *_started_at(ledger),
        *how_it_was_made(options, ledger, origin),
    ]
    return "\n\n".join(parts) + "\n"


def made_by(command: str, origin: Mapping[str, Any]) -> str:
    """Return what made something, and when, in a sentence."""
    commit = origin["commit"] or "no checkout"
    return f"Made by `{command}` with Outpace {origin['outpace']} ({commit}), {origin['date']}."


def how_it_was_made(options: RunOptions, ledger: Ledger, origin: Mapping[str, Any]) -> list[str]:
    """Return the last parts of a card: text, training and machine."""
    return [
        "## Text",
        table(("stage", "what", "minutes"), text_rows(options, ledger)),
        "## Training",
        training_part(options, ledger),
        "## Machine",
        machine_part(origin),
    ]


def check_table(check: Check) -> str:
    """Return forecast and reality by kind of text, as a Markdown table."""
    head = ("text", "sampling", "conversations", "tokens", "forecast", "decoded", "forecast / decoded")
    return table(head, [_row(row) for row in (*check.rows, *check.totals)])


def _row(row: Row) -> Sequence[Any]:
    return (
        f"**{row.kind}**" if row.kind == "all" else row.kind,
        "sampled" if row.sampled else "greedy",
        row.texts,
        row.tokens,
        f"{row.forecast:.2f}",
        f"{row.real:.2f}",
        f"{row.ratio:.3f}",
    )


def verdict(check: Check) -> str:
    """Return in a line whether forecast and real loop agree."""
    ratios = ", ".join(f"{row.ratio:.3f} {'sampled' if row.sampled else 'greedy'}" for row in check.totals)
    if check.different:
        return f"NOT COMPARABLE: the engine wrote {check.different} of the held-out conversations differently."
    word = "agree" if check.agrees else "DISAGREE"
    return f"Forecast and decoding {word} (forecast / decoded: {ratios}; allowed: within {TOLERANCE:.0%})."


def _tuned(options: TrainOptions, ledger: Ledger) -> list[str]:
    """Return what became of a target that was tuned beside its heads."""
    if not options.joint:
        return []
    return [
        "## The target is another model now",
        "Its heads were trained together with an adapter of the target (Medusa-2), `adapter.gguf`, which is to be "
        "loaded with it. Decoding is lossless relative to the target *with* the adapter, and **lossy relative to the "
        "original**, by:",
        divergence_table(ledger),
    ]


def divergence_table(ledger: Ledger) -> str:
    """Return how far a tuned target is from the original, as a Markdown table."""
    own, kept = ledger.facts("training")["measured"]["divergence"], ledger.facts("check")["kept"]
    lines = [
        (f"next tokens that are the original's ({own['positions']} held-out positions)", f"{own['top1']:.1%}"),
        ("KL(original, tuned), nats a token", f"{own['kl']:.4f}"),
        (
            "perplexity of the original's text",
            f"{own['perplexity']:.3f} (the original's {own['original_perplexity']:.3f})",
        ),
        ("responses that are the original's, token by token", f"{kept['same']} of {kept['prompts']}"),
        ("share of the original's tokens before the first difference", f"{kept['leading']:.1%}"),
    ]
    return table(("the tuned target", "on held-out text"), lines)


def _started_at(ledger: Ledger) -> list[str]:
    facts = ledger.facts("training")
    if facts["score_before"] is None:
        return []
    what = ", times the share of the original's tokens" if facts["measured"]["divergence"] else ""
    return [
        f"It continues an earlier drafter. Simulated tokens per step, mean over kinds{what}: "
        f"{facts['score_before']:.3f} before, {facts['score']:.3f} after."
    ]


def text_rows(options: RunOptions, ledger: Ledger) -> list[Sequence[Any]]:
    """Return what the text is, stage by stage, and the minutes that it took."""
    facts = {stage: ledger.facts(stage) for stage in SHARES}
    own = facts["prompts"]
    if options.texts is not None:
        what = f"{options.texts}" + (f": {own['sequences']} sequences" if own.get("sequences") else "")
    else:
        source = f"`{options.prompts}`" if options.prompts else "written by the target from its bare chat template"
        left_out = ", ".join(f"{count} {reason}" for reason, count in own["dropped"].items() if count) or "none"
        what = f"{own['train']} to train on, {own['held_out']} held out, {source}; left out: {left_out}"
    rows: list[Sequence[Any]] = [("prompts" if options.texts is None else "texts", what, _minutes(ledger, "prompts"))]
    for stage in ("held-out", "responses"):
        if "tokens" in facts[stage]:
            what = f"{facts[stage]['conversations']} conversations, {facts[stage]['tokens']} tokens to learn"
            if "written_by" in facts[stage]:
                what += f", written by {facts[stage]['written_by']}"
            rows.append((stage, what, _minutes(ledger, stage)))
    return rows


def training_part(options: RunOptions, ledger: Ledger) -> str:
    """Return how long it was trained, on what, and with which options."""
    facts = ledger.facts("training")
    lines = [
        ("conversations", facts["conversations"]),
        ("steps", facts["steps"]),
        ("positions learned", facts["positions"]),
        ("device", facts["device"]),
        ("minutes", _minutes(ledger, "training")),
    ]
    given = [(name, value) for name, value in options.as_dict().items() if value is not None and name != "kind"]
    return table(("", ""), lines) + "\n\nOptions: " + ", ".join(f"`{name}` {value}" for name, value in given) + "."


def machine_part(origin: Mapping[str, Any]) -> str:
    """Return the machine and the versions in a line."""
    machine, versions = origin["machine"], origin["versions"]
    isa = f", {origin['isa']}" if origin["isa"] else ""
    return (
        f"{machine['cpu']}, {machine['cpus_allowed']} CPUs, {origin['threads']} threads, {origin['ops']} ops{isa}, "
        f"{machine['system']}; " + ", ".join(f"{name} {version}" for name, version in versions.items()) + "."
    )


def _minutes(ledger: Ledger, stage: str) -> str:
    return f"{ledger.seconds(stage) / 60:.1f}"
