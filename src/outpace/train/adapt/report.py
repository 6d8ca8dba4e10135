"""The card and the picture of an adapter's training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from outpace.measure.markdown import table
from outpace.train.adapt.measure import Measured
from outpace.train.adapt.options import AdaptOptions
from outpace.train.ledger import Ledger
from outpace.train.report.card import how_it_was_made, made_by

_MASKS = "It opens blocks: masked slots see each other, and everything before the block, which is computed causally"
_JUMPS = (
    "It makes another model of this one, whose Jacobi iterations jump further. Greedy decoding of *that* model is "
    "exact; relative to the original it is lossy, by what the table says."
)
_WHAT = {
    ("diffusion", "lora"): f"{_MASKS}, without the adapter. What it fills in is lossy; with `verified=True` the model "
    "checks it, and it is lossless.",
    ("diffusion", "full"): f"{_MASKS}. It is another model than the original, and what it fills in is lossy.",
    ("jacobi", "lora"): _JUMPS,
    ("jacobi", "full"): _JUMPS,
}


def card(
    options: AdaptOptions,
    ledger: Ledger,
    before: Measured,
    measured: Measured,
    origin: Mapping[str, Any],
    command: str,
    num_bytes: int,
) -> str:
    """Return the card as Markdown. origin: as `measure.provenance` tells it. num_bytes: of the adapter's file."""
    target = origin["model"]
    parts = [
        f"# {'A model made of' if options.weights == 'full' else 'An adapter for'} {target['name']}: `{options.kind}`",
        f"{made_by(command, origin)} {num_bytes / 1e6:.1f} MB. It was made for this file "
        f"({target['bytes'] / 1e6:.0f} MB, SHA-256 {target['sha256'][:16]}).",
        _WHAT[options.kind, options.weights or "lora"],
        "## What it brings",
        "On conversations that training did not see, written by the target: every block decoded in PyTorch behind the "
        f"true text ({measured.num_tokens} tokens).",
        measured_table(options.kind, before, measured),
        f"The checkpoint was chosen by {scored(options.kind, measured)}: {measured.score:.3f}, {before.score:.3f} "
        "before.",
        *how_it_was_made(options, ledger, origin),
    ]
    return "\n\n".join(parts) + "\n"


def scored(kind: str, measured: Measured) -> str:
    """Return what checkpoints are chosen by."""
    what = "tokens per pass" if kind == "jacobi" else "verified tokens per pass at the best threshold"
    if measured.clean_agreement is None:
        return what
    return f"{what} x next tokens that are the original's ({measured.clean_agreement:.1%})"


def measured_table(kind: str, before: Measured, measured: Measured) -> str:
    """Return what decoding by blocks brings, before training and after it, as a Markdown table."""
    if kind == "jacobi":
        rows = [_jacobi_row(name, own) for name, own in (("before", before), ("after", measured))]
        head = ("", "tokens per pass", "the text's tokens", "next token as the original's", "perplexity of the text")
        return table(head, rows)
    rows = [
        (
            f"{row.threshold:g}" if row.threshold else "0 (one pass)",
            f"{row.tokens_per_pass:.2f}",
            f"{row.agreement:.1%}",
            f"{row.verified:.2f}",
            f"{old.verified:.2f}",
        )
        for row, old in zip(measured.rows, before.rows, strict=True)
    ]
    head = ("threshold", "tokens per pass", "the text's tokens", "verified tokens per pass", "before training")
    lines = [table(head, rows), f"Masked slots that are right: {measured.accuracy:.1%} ({before.accuracy:.1%} before)."]
    if measured.clean_agreement is not None:
        lines.append(
            f"Next tokens behind the text that are the original's: {measured.clean_agreement:.1%}; perplexity of the "
            f"text {measured.clean_perplexity:.3f} (the original's {measured.original_perplexity:.3f})."
        )
    return "\n\n".join(lines)


def _jacobi_row(name: str, own: Measured) -> Sequence[Any]:
    (row,) = own.rows
    return (
        name,
        f"{row.tokens_per_pass:.2f}",
        f"{row.agreement:.1%}",
        f"{own.clean_agreement:.1%}",
        f"{own.clean_perplexity:.3f} (the original's {own.original_perplexity:.3f})",
    )
