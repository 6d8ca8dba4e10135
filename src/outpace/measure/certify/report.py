"""The certificate for people: a Markdown report and the verdict in a few lines."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from outpace.measure.certify.certificate import Certificate, DistributionTest
from outpace.measure.certify.divergence import Divergence
from outpace.measure.certify.identity import IdentityRun
from outpace.measure.certify.loss import LIMIT, Loss
from outpace.measure.markdown import table

_WORDS = {
    "pass": "PASS: every strategy wrote plain decoding's sequence, and verification kept the target's distribution.",
    "fail": "FAIL: see below what differs.",
    "void": "VOID: a deliberate fault was not caught, so nothing here is proven.",
}


def verdict_lines(certificate: Certificate) -> list[str]:
    """Return the verdict, and what it rests on, in a few lines of plain text."""
    c = certificate
    tokens = sum(run.tokens for run in c.identity)
    good = len(c.identity) - len(c.broken)
    cached = sum(run.cached_tokens for run in c.identity)
    biased = c.biased_control.result
    return [
        _WORDS[c.verdict],
        f"identity: {good} of {len(c.identity)} cases, {tokens} tokens compared with plain decoding "
        f"({cached} prompt tokens came from the cache)",
        *(f"  {_case(run)}: {_difference(d)}" for run in c.broken[:5] for d in run.divergences[:1]),
        *(f"distribution of {_test(test)}" for test in c.distribution if not test.is_lossy),
        f"controls: a wrong token was {'' if c.wrong_token else 'NOT '}caught; "
        f"biased rejection sampling was {'NOT ' if biased.passed else ''}caught (p = {biased.p_value:.1e})",
        *(
            f"lossy: {loss.mode} against {loss.target}: {_finding(loss)} (divergence {loss.divergence:.5f} nats, "
            f"last bits alone {loss.floor:.5f}; same top token {loss.top1:.1%}; {loss.positions} positions)"
            for loss in c.losses
        ),
        *(f"lossy by request: {_lossy(test)}" for test in c.distribution if test.is_lossy),
    ]


def markdown(certificate: Certificate) -> str:
    """Return the whole report."""
    c = certificate
    p = c.provenance
    parts = [
        "# Certificate",
        f"**{_WORDS[c.verdict]}**",
        table(
            ("what", "value"),
            [
                ("model", f"{p['model']['name']}, SHA-256 {p['model']['sha256']}"),
                ("Outpace", f"{p['outpace']}, commit {p['commit'] or 'unknown (no checkout)'}"),
                ("arithmetic", f"{p['ops']} ops, {p['isa'] or 'no'} instruction set extension, {p['threads']} threads"),
                ("machine", f"{p['machine']['cpu']}, {p['machine']['system']}"),
                ("date, duration", f"{p['date']}, {c.seconds:.0f} s"),
            ],
        ),
        "## Same sequence?",
        f"Each case wrote up to {c.scope.num_tokens} tokens (`recompute`: {c.scope.num_recomputed}) after the prompts "
        "listed at the end, past the model's own end token, and was compared token by token with plain decoding of "
        "each prompt alone with nothing cached. Sampled sequences have a fixed seed.",
        table(("strategy", "KV", "sampling", "identical", "tokens", "tokens per step"), _identity_rows(c.identity)),
        *_divergences(c.broken),
        "Control: a sequence with one wrong token was "
        + (f"caught ({_difference(c.wrong_token)})." if c.wrong_token else "**not caught**."),
        "## Same distribution?",
        f"The first two tokens after the first prompt, with {c.scope.draws} seeds, against the target's distribution "
        "of the pair, computed from raw logits apart from the sampler. The drafter prefers what the target finds "
        "unlikely: most drafts are rejected. Right verification would be accused with odds of "
        f"{c.scope.false_alarm:g}, all tests together (Bonferroni). Seeds are fixed, so the same machine gives the "
        "same result again.",
        table(
            (
                "verification",
                "cells",
                "chi-square",
                "p-value",
                "fails below",
                "would have caught (99 %)",
                "distance found",
                "result",
            ),
            [_test_row(test) for test in (*c.distribution, c.biased_control)],
        ),
        "Typical acceptance is lossy by request: it keeps guesses that the target finds likely enough, so it is not "
        "expected to keep the distribution, and its row counts for nothing in the verdict. The distance is the total "
        "variation over these pairs, with a drafter that is wrong on purpose: a good one moves the text less.",
        "The last row is the control: after a rejection it draws from p instead of what p has beyond q. It must fail.",
        "## How lossy?",
        "KV formats change the text on purpose (identity above holds within each format). Measured along "
        "texts that the model wrote with f32 keys and values (temperature 1), their prompts included: every format "
        "reads the same tokens, and its next-token distribution is compared with f32's at each of them. The floor is "
        "f32's own divergence from itself when only its last bits are others; what a format costs is its divergence "
        "less the floor, here in percent of perplexity.",
        table(
            (
                "mode",
                "positions",
                "divergence (nats)",
                "floor",
                "cost",
                "95 % interval",
                "total variation: mean",
                "max",
                "same top token",
            ),
            [
                (
                    loss.mode,
                    loss.positions,
                    f"{loss.divergence:.5f}",
                    f"{loss.floor:.5f}",
                    _percent(loss.cost),
                    f"{_percent(loss.cost_low)} to {_percent(loss.cost_high)}",
                    f"{loss.tv_mean:.5f}",
                    f"{loss.tv_max:.4f}",
                    f"{loss.top1:.2%}",
                )
                for loss in c.losses
            ],
        ),
        *(f"**{loss.mode}**: {_finding(loss)}." for loss in c.losses),
        "## Prompts",
        "\n".join(f"{i}. {' '.join(text.split())[:100]}" for i, text in enumerate(c.prompts, 1)),
    ]
    return "\n\n".join(parts) + "\n"


def _identity_rows(runs: Iterable[IdentityRun]) -> list[tuple[Any, ...]]:
    """Return a row per strategy, KV format and sampling: how many of its batch and cache cases are identical."""
    groups: dict[tuple[str, str, str], list[IdentityRun]] = {}
    for run in runs:
        groups.setdefault((run.case.strategy, run.case.kv, run.case.sampling), []).append(run)
    return [
        (
            *key,
            f"{sum(run.identical for run in group)} of {len(group)} cases",
            sum(run.tokens for run in group),
            f"{sum(run.tokens for run in group) / sum(run.tokens / run.tokens_per_step for run in group):.2f}",
        )
        for key, group in groups.items()
    ]


def _divergences(broken: Sequence[IdentityRun]) -> list[str]:
    if not broken:
        return []
    rows = [(_case(run), d.sequence + 1, _difference(d)) for run in broken for d in run.divergences]
    return ["### Where sequences part", table(("case", "sequence", "first difference"), rows)]


def _case(run: IdentityRun) -> str:
    case = run.case
    return f"{case.strategy}, batch {case.batch}, {case.kv}, prefix {case.prefix}, {case.sampling}"


def _difference(d: Divergence) -> str:
    if d.margin is None or d.gap is None or d.rounding is None:
        return f"at token {d.position} one sequence ends ({d.plain} against {d.other})"
    words = "within rounding" if d.within_rounding else "NOT within rounding"
    return (
        f"at token {d.position}: {d.other} instead of {d.plain}, whose score is {d.gap:.3g} higher (best two: "
        f"{d.margin:.3g}); scores move by {d.rounding:.3g} between pass widths: {words}"
    )


def _finding(loss: Loss) -> str:
    """Return what a mode costs, in words: what is measured, and what cannot be told from last bits."""
    if loss.finding == "none measurable":
        return f"no loss measurable above last bits (at most {_percent(loss.cost_high)} of perplexity, 95 %)"
    interval = f"{_percent(loss.cost_low)} to {_percent(loss.cost_high)}"
    if loss.finding == "loss":
        return f"a loss of {_percent(loss.cost)} of perplexity ({interval})"
    return (
        f"LOSES {_percent(loss.cost)} of perplexity ({interval}), more than the {_percent(LIMIT)} that a format should "
        "cost: take another one for this model"
    )


def _percent(nats: float) -> str:
    """Return by how much perplexity changes with so many nats a token."""
    return f"{math.expm1(nats):.2%}" if math.isfinite(nats) else f"{nats}"


def _test(test: DistributionTest) -> str:
    r = test.result
    return (
        f"{test.verification}: {'kept' if r.passed else 'BROKEN'} (chi-square {r.statistic:.1f} over {r.cells} cells, "
        f"p = {r.p_value:.2g}; false alarm {r.false_alarm:.1e}; a bias of {r.detectable:.3f} would have been caught)"
    )


def _lossy(test: DistributionTest) -> str:
    r = test.result
    return (
        f"{test.verification}: total variation {r.distance:.3f} from the target's distribution of two tokens, with a "
        f"drafter that is wrong on purpose (chi-square {r.statistic:.1f} over {r.cells} cells)"
    )


def _test_row(test: DistributionTest) -> tuple[Any, ...]:
    r = test.result
    return (
        test.verification,
        r.cells,
        f"{r.statistic:.1f}",
        f"{r.p_value:.2g}",
        f"{r.false_alarm:.1e}",
        f"total variation {r.detectable:.3f}",
        f"{r.distance:.3f}",
        "lossy by request" if test.is_lossy else "kept" if r.passed else "broken",
    )
