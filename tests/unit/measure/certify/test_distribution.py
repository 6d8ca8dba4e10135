"""False alarms: 10^-6 per test that passes; what must fail is far outside."""

from __future__ import annotations

import pytest

from outpace.engine.verify import EXACT_MATCH, REJECTION_SAMPLING
from outpace.measure.certify.adversarial_drafter import AdversarialDrafter
from outpace.measure.certify.distribution import BiasedRejection, check_distribution
from outpace.measure.certify.target_distribution import TargetDistribution
from outpace.runner import Runner


@pytest.mark.parametrize("name", ["plain", "exact", "rejection", "biased"])
def test_right_verification_passes_and_the_biased_one_is_caught(
    runner: Runner, target: TargetDistribution, name: str
) -> None:
    verifiers = {"rejection": REJECTION_SAMPLING, "biased": BiasedRejection()}
    drafter = None if name == "plain" else AdversarialDrafter(target)
    found = check_distribution(runner, target, verifiers.get(name, EXACT_MATCH), drafter, draws=1500, false_alarm=1e-6)
    assert found.passed == (name != "biased")
    assert found.draws == 1500
    assert found.cells > 10
    assert runner.cache.num_available == runner.cache.capacity


def test_every_draw_is_reported_before_it_is_made(runner: Runner, target: TargetDistribution) -> None:
    begun: list[int] = []
    check_distribution(runner, target, EXACT_MATCH, None, draws=70, false_alarm=1e-6, begin=begun.append)
    assert begun == [32, 32, 6]
