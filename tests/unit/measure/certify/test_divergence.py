from __future__ import annotations

import numpy as np
import pytest

from outpace.measure.certify.divergence import Divergence, find_divergence, first_difference
from outpace.measure.scoring import score
from tests.decoding import decode, tiny_runner

PROMPT = [5, 6, 7]


def test_the_first_difference_is_found_also_where_a_sequence_ends() -> None:
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 2, 3], [1, 9, 3]) == 1
    assert first_difference([1, 2, 3], [1, 2]) == 2
    assert first_difference([], [1]) == 0


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_wrong_token_is_explained_by_its_scores(temperature: float) -> None:
    runner = tiny_runner()
    (g,) = decode(runner, [PROMPT], temperature=temperature, seed=3, max_new_tokens=12)
    wrong = [*g.output.tokens[:6], (g.output.tokens[6] + 1) % 97, *g.output.tokens[7:]]
    found = find_divergence(runner, PROMPT, g.output.tokens, wrong, sequence=2, temperature=temperature, seed=3)
    assert found is not None
    assert (found.sequence, found.position, found.plain, found.other) == (2, 6, g.output.tokens[6], wrong[6])
    assert found.gap >= found.margin > 0  # the plain token has the best score, noise included
    assert found.rounding == 0.0  # the reference keeps the third principle
    assert not found.within_rounding
    if temperature == 0.0:
        (rows,) = score(runner, PROMPT, g.output.tokens)
        second, best = np.sort(rows[6])[-2:]
        assert found.margin == pytest.approx(best - second)


def test_a_sequence_that_ends_early_has_no_scores_to_compare() -> None:
    runner = tiny_runner()
    found = find_divergence(runner, PROMPT, [1, 2, 3], [1, 2], sequence=0, temperature=0.0, seed=0)
    assert found == Divergence(0, 2, 3, None, None, None, None)
    assert not found.within_rounding
    assert find_divergence(runner, PROMPT, [1, 2], [1, 2], sequence=0, temperature=0.0, seed=0) is None


def test_two_scores_change_places_when_each_moves_by_half_their_gap() -> None:
    assert Divergence(0, 0, 1, 2, 0.1, 0.2, 0.1).within_rounding
    assert not Divergence(0, 0, 1, 2, 0.1, 0.2, 0.099).within_rounding
