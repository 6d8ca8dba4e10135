from __future__ import annotations

import itertools
from fractions import Fraction

import pytest

from outpace.drafters.matching import trust


@pytest.mark.parametrize("match", [0, 1, 2, 7, 100])
def test_trust_is_the_share_of_agreements_with_one_failure_beside_them(match: int) -> None:
    assert trust(match) == float(Fraction(match, match + 1))


def test_trust_grows_with_every_token_that_agreed_and_is_never_certain() -> None:
    values = [trust(match) for match in range(10_000)]
    assert values[0] == 0.0
    assert all(shorter < longer < 1.0 for shorter, longer in itertools.pairwise(values))
