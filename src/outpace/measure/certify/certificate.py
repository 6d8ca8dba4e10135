"""The certificate: what was examined, what came of it, and the verdict."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from outpace.measure.certify.chi_square import ChiSquare
from outpace.measure.certify.divergence import Divergence
from outpace.measure.certify.identity import IdentityRun
from outpace.measure.certify.loss import Loss

SCHEMA = 4
Verdict = Literal["pass", "fail", "void"]


@dataclass(frozen=True, slots=True)
class Scope:
    """How much is examined.

    num_prompts: sequences per case; num_tokens: their new tokens (num_recomputed: for "recompute"); max_groups:
    batches of each case (None: all); draws: seeds per way of verification; false_alarm: odds that the chi-square
    tests together accuse verification that is right; num_scored: positions at which lossy formats are compared.
    """

    num_prompts: int = 6
    num_tokens: int = 128
    num_recomputed: int = 16
    batches: tuple[int, ...] = (1, 4)
    max_groups: int | None = None
    draws: int = 10_000
    false_alarm: float = 1e-6
    num_scored: int = 2048


FULL = Scope()
QUICK = Scope(num_prompts=4, num_tokens=24, num_recomputed=4, max_groups=1, draws=1000, num_scored=512)


@dataclass(frozen=True, slots=True)
class DistributionTest:
    """The chi-square of one way of verification. is_lossy: by request, so that it may fail; the distance counts."""

    verification: str
    result: ChiSquare
    is_lossy: bool = False


@dataclass(frozen=True, slots=True)
class Certificate:
    """All results. The controls are deliberate faults: unless both are caught, the rest means nothing."""

    provenance: dict[str, Any]
    scope: Scope
    prompts: tuple[str, ...]
    identity: tuple[IdentityRun, ...]
    wrong_token: Divergence | None  # the control of identity: None would mean that it was not caught
    distribution: tuple[DistributionTest, ...]
    biased_control: DistributionTest  # the control of chi-square
    losses: tuple[Loss, ...]
    seconds: float

    @property
    def controls_caught(self) -> bool:
        """Whether both deliberate faults were found, and the wrong token not taken for rounding."""
        found = self.wrong_token is not None and not self.wrong_token.within_rounding
        return found and not self.biased_control.result.passed

    @property
    def broken(self) -> list[IdentityRun]:
        """The cases that did not write plain decoding's sequences."""
        return [run for run in self.identity if not run.identical]

    @property
    def verdict(self) -> Verdict:
        """Pass: identical everywhere and no distribution refused. Void: a control was not caught."""
        if not self.controls_caught:
            return "void"
        kept = all(test.result.passed or test.is_lossy for test in self.distribution)
        return "fail" if self.broken or not kept else "pass"

    def as_dict(self) -> dict[str, Any]:
        """Return the certificate as plain JSON values."""
        return {
            "schema": SCHEMA,
            "kind": "certificate",
            "verdict": self.verdict,
            "provenance": self.provenance,
            "scope": asdict(self.scope),
            "prompts": list(self.prompts),
            "identity": [_identity(run) for run in self.identity],
            "identity_control": _divergence(self.wrong_token),
            "distribution": [_test(test) for test in self.distribution],
            "distribution_control": _test(self.biased_control),
            "losses": [_loss(loss) for loss in self.losses],
            "seconds": self.seconds,
        }


def _identity(run: IdentityRun) -> dict[str, Any]:
    return {
        **asdict(run.case),
        "sequences": run.sequences,
        "tokens": run.tokens,
        "cached_tokens": run.cached_tokens,
        "tokens_per_step": run.tokens_per_step,
        "identical": run.identical,
        "divergences": [_divergence(d) for d in run.divergences],
    }


def _divergence(divergence: Divergence | None) -> dict[str, Any] | None:
    return None if divergence is None else {**asdict(divergence), "within_rounding": divergence.within_rounding}


def _loss(loss: Loss) -> dict[str, Any]:
    return {**asdict(loss), "cost": loss.cost, "finding": loss.finding}


def _test(test: DistributionTest) -> dict[str, Any]:
    found = {"verification": test.verification, **asdict(test.result), "passed": test.result.passed}
    return {**found, "lossy_by_request": test.is_lossy}
