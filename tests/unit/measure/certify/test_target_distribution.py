from __future__ import annotations

import itertools

import numpy as np
import pytest

from outpace.measure.certify.target_distribution import TargetDistribution
from outpace.measure.scoring import score
from outpace.runner import Runner
from tests.unit.measure.certify.conftest import PROMPT


def test_the_first_token_is_open_and_the_pairs_are_a_distribution(target: TargetDistribution) -> None:
    assert target.first.max() <= 0.5
    assert target.pairs.sum() == pytest.approx(1.0)
    assert (target.second > 0).sum(axis=1).tolist() == [5] * 5
    assert target.sampling.top_k == 5


def test_a_pair_has_the_product_of_its_conditional_probs(runner: Runner, target: TargetDistribution) -> None:
    """Recomputed here from logits with a softmax of its own, token by token."""

    def probs(sequence: list[int]) -> dict[int, float]:
        (row,) = next(score(runner, sequence, [0])).astype(np.float64) / target.sampling.temperature
        best = sorted(range(len(row)), key=lambda token: (-row[token], token))[:5]
        mass = {token: np.exp(row[token] - row[best[0]]) for token in best}
        return {token: float(value / sum(mass.values())) for token, value in mass.items()}

    first = probs(PROMPT)
    assert first == pytest.approx(dict(zip(target.tokens.tolist(), target.first.tolist(), strict=True)))
    for (place, token), second in itertools.product(enumerate(target.tokens.tolist()), range(40)):
        expected = first[token] * probs([*PROMPT, token]).get(second, 0.0)
        assert target.pairs[place, second] == pytest.approx(expected)
