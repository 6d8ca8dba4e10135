from __future__ import annotations

import numpy as np
import pytest

from outpace.ops.reference.experts import choose


def test_the_best_come_first_and_of_equals_the_lowest_id() -> None:
    logits = np.array([1.0, 3.0, 2.0, 3.0, 2.0], np.float32)
    chosen, weights = choose(logits, 3, is_normalised=True)
    assert chosen.tolist() == [1, 3, 2]
    assert weights[0] == weights[1] > weights[2]


@pytest.mark.parametrize("count", [1, 3, 5])
def test_weights_are_a_softmax_over_all_experts_or_over_the_chosen(count: int) -> None:
    logits = np.array([0.5, -2.0, 1.5, 30.0, 0.0])
    terms = np.exp(logits)
    chosen, over_all = choose(logits, count, is_normalised=False)
    assert over_all == pytest.approx(terms[chosen] / terms.sum())
    chosen, over_chosen = choose(logits, count, is_normalised=True)
    assert over_chosen == pytest.approx(terms[chosen] / terms[chosen].sum())
    assert over_chosen.sum() == pytest.approx(1)
