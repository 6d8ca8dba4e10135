"""False alarms of the chi-square: 10^-6."""

from __future__ import annotations

import numpy as np

from outpace.engine.verify import REJECTION_SAMPLING
from outpace.measure.certify.adversarial_drafter import AdversarialDrafter
from outpace.measure.certify.chi_square import chi_square
from outpace.measure.certify.target_distribution import TargetDistribution
from outpace.runner import Runner
from tests.decoding import decode, request
from tests.unit.measure.certify.conftest import PROMPT


class _View:
    id = 0

    def __init__(self, seed: int, written: tuple[int, ...] = ()) -> None:
        self.request = request(PROMPT, seed=seed)
        self.tokens = [*PROMPT, *written]


def test_its_guesses_have_the_distribution_that_it_states(target: TargetDistribution) -> None:
    drafter = AdversarialDrafter(target)
    firsts = np.zeros(40, np.int64)
    for seed in range(2000):
        (tree,) = drafter.propose([_View(seed)], [3])
        assert tree.q is not None
        assert len(set(tree.tokens[:2])) == 2
        firsts[tree.tokens[0]] += 1
    assert chi_square(firsts, drafter.q_first).passed
    assert drafter.q_first[target.tokens[0]] < drafter.q_first[target.tokens[-1]]


def test_it_drafts_nothing_where_it_knows_no_distribution_or_has_no_budget(target: TargetDistribution) -> None:
    drafter = AdversarialDrafter(target)
    known, unknown = int(target.tokens[0]), int(np.flatnonzero(target.pairs.sum(axis=0) == 0)[0])
    assert unknown not in target.tokens
    views = [_View(1, (known,)), _View(1, (unknown,)), _View(1, (known,)), _View(1), _View(1, (known, known))]
    assert [len(tree) for tree in drafter.propose(views, [1, 1, 0, 2, 3])] == [1, 0, 0, 0, 0]


def test_most_of_its_guesses_are_rejected_so_the_residual_matters(runner: Runner, target: TargetDistribution) -> None:
    generations = [
        decode(runner, [PROMPT], drafter=AdversarialDrafter(target), verifier=REJECTION_SAMPLING,
               seed=seed, max_new_tokens=4, temperature=target.sampling.temperature, top_k=target.sampling.top_k)[0]
        for seed in range(60)
    ]  # fmt: skip
    verified = sum(g.stats.proposed["adversarial"] for g in generations)
    accepted = sum(g.stats.accepted.get("adversarial", 0) for g in generations)
    assert 0.05 < accepted / verified < 0.6
