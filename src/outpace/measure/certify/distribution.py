"""Does each way of verification write tokens with the target's distribution? Chi-square over many seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from outpace.engine.decode import Decoder
from outpace.engine.sequence import SequenceState
from outpace.engine.stop import Output
from outpace.engine.verify import REJECTION_SAMPLING, Verifier
from outpace.measure.certify.adversarial_drafter import AdversarialDrafter
from outpace.measure.certify.chi_square import ChiSquare, chi_square
from outpace.measure.certify.target_distribution import TargetDistribution
from outpace.ops.layers import Array
from outpace.runner import Runner, ScheduledSequence
from outpace.types import Options, Request
from outpace.types.tree import DraftTree, Verification

LENGTH = 4  # tokens asked for, so that the first draft may have three nodes; two are counted
BATCH = 32  # seeds decoded together


class BiasedRejection:
    """Rejection sampling with the textbook mistake: after a rejection it draws from p, not from what p has beyond q.

    The negative control: a test that lets this pass is worth nothing.
    """

    is_lossless = False

    def check(self, tree: DraftTree, vocab_size: int) -> None:
        REJECTION_SAMPLING.check(tree, vocab_size)

    def verify(self, runner: Runner, logits: Array, batch: Sequence[ScheduledSequence]) -> list[Verification]:
        verifications = REJECTION_SAMPLING.verify(runner, logits, batch)
        for s, verification, own in zip(batch, verifications, runner.sample(logits, batch), strict=True):
            end = verification.path[-1] if verification.path else -1
            if s.tree.children(end):
                verification.target_tokens[end + 1] = own[end + 1]
        return verifications


def check_distribution(
    runner: Runner,
    target: TargetDistribution,
    verifier: Verifier,
    drafter: AdversarialDrafter | None,
    *,
    draws: int,
    false_alarm: float,
    begin: Callable[[int], None] = lambda count: None,
) -> ChiSquare:
    """Write the prompt's first two tokens with seeds 0 ... draws - 1 and compare the pairs with the target's.

    begin(count): called before each batch of `count` draws.
    """
    places = {token: place for place, token in enumerate(target.tokens.tolist())}
    counts = np.zeros(target.second.shape, np.int64)
    stray = 0  # first tokens that the target never writes
    for first in range(0, draws, BATCH):
        seeds = range(first, min(first + BATCH, draws))
        begin(len(seeds))
        for a, b in _pairs(runner, target, verifier, drafter, seeds):
            if a in places:
                counts[places[a], b] += 1
            else:
                stray += 1
    return chi_square(np.append(counts.ravel(), stray), np.append(target.pairs.ravel(), 0.0), false_alarm)


def _pairs(
    runner: Runner,
    target: TargetDistribution,
    verifier: Verifier,
    drafter: AdversarialDrafter | None,
    seeds: Sequence[int],
) -> Iterator[tuple[int, int]]:
    """Yield the first two tokens of each seed. They are decoded together, from one prefill."""
    loop = Decoder(runner)
    options = Options(sampling=target.sampling, max_new_tokens=LENGTH, strategy="none", salt=b"distribution")
    sequences = []
    for seed in seeds:
        request = Request.of(target.prompt, options, seed=seed)
        output = Output(request, runner.context)
        sequences.append(SequenceState(request, output, drafter=drafter, verifier=verifier))
    loop.add(sequences)
    for _ in loop.run():
        for sequence in sequences:
            if len(sequence.output.tokens) >= 2:
                loop.cancel(sequence)
    for sequence in sequences:
        first, second, *_ = sequence.output.tokens
        yield first, second
