"""Does each rule write tokens with the target's law? Pairs of first tokens over many seeds, against chi-square."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outpace.drafters.protocol import Drafter, SequenceView
from outpace.engine.decode import Decoder
from outpace.engine.sequence import SequenceState
from outpace.engine.stop import Output
from outpace.engine.verify import REJECTION_SAMPLING, Verifier
from outpace.measure.certify.chi_square import ChiSquare, chi_square
from outpace.measure.certify.scoring import score, softmax
from outpace.ops.protocol import Array
from outpace.runner import Pass, Runner, ScheduledSequence
from outpace.trace import Step
from outpace.tree import EMPTY, DraftTree, Verification
from outpace.types import Options, Request, SamplingParams

_TOP_K = 5  # candidates: few, so that pairs of tokens are counted often
_TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0)
_MOST_LIKELY = 0.5  # the temperature is raised until no first token has more
_OUTSIDE = 0.1  # part of the drafts that are tokens the target never writes
_LENGTH = 4  # tokens asked for, so that the first draft may have three nodes; two are counted
_TOGETHER = 32  # seeds decoded in one batch


@dataclass(frozen=True, slots=True)
class Question:
    """The target's exact law of the first two tokens after a prompt.

    tokens [K]: candidates of the first token, most likely first. first [K]: their law. second [K, V]: the law of the
    second token after each.
    """

    prompt: tuple[int, ...]
    sampling: SamplingParams
    tokens: NDArray[np.int64]
    first: NDArray[np.float64]
    second: NDArray[np.float64]

    @staticmethod
    def of(runner: Runner, prompt: Sequence[int]) -> Question:
        """Compute the laws from raw logits, at the lowest temperature that leaves the first token open."""
        (logits,) = score(runner, prompt, [0])
        k = min(_TOP_K, runner.model.config.vocab_size - 1)
        for temperature in _TEMPERATURES:
            law = softmax(logits, temperature, k)[0]
            if law.max() <= _MOST_LIKELY:
                break
        tokens = np.argsort(-law, kind="stable")[:k]
        after = [next(score(runner, [*prompt, token], [0])) for token in tokens.tolist()]
        second = softmax(np.concatenate(after), temperature, k)
        return Question(tuple(prompt), SamplingParams(temperature, top_k=k), tokens, law[tokens], second)

    @property
    def pairs(self) -> NDArray[np.float64]:
        """The law of the pair, [K, V]."""
        return self.first[:, None] * self.second


class Contrary:
    """A poor drafter with a known law: it prefers what the target finds least likely, so that much is rejected.

    At the root it draws two siblings without replacement, behind the first of them one more token. Its randomness is
    its own.
    """

    name = "contrary"
    taps: tuple[int, ...] = ()

    def __init__(self, question: Question) -> None:
        self.question = question
        self.q_first = np.zeros(question.second.shape[1])
        self.q_first[question.tokens] = question.first
        self.q_first = _contrary(self.q_first)
        self.q_second = np.stack([_contrary(law) for law in question.second])
        self.places = {token: place for place, token in enumerate(question.tokens.tolist())}

    def propose(self, sequences: Sequence[SequenceView], budgets: Sequence[int]) -> list[DraftTree]:
        return [self._draft(sequence, budget) for sequence, budget in zip(sequences, budgets, strict=True)]

    def observe(self, steps: Sequence[Step], passed: Pass) -> None:
        """Nothing to learn."""

    def forget(self, request: int) -> None:
        """Nothing is remembered."""

    def _draft(self, sequence: SequenceView, budget: int) -> DraftTree:
        written = sequence.tokens[len(self.question.prompt) :]
        rng = np.random.default_rng([sequence.request.seed, len(written)])
        if not written and budget >= 3:
            first, sibling = rng.choice(len(self.q_first), 2, replace=False, p=self.q_first).tolist()
            if first not in self.places:  # a token that the target never writes: nothing is drafted behind it
                return _tree([first, sibling], [-1, -1], [self.q_first])
            q_next = self.q_second[self.places[first]]
            behind = int(rng.choice(len(q_next), p=q_next))
            return _tree([first, sibling, behind], [-1, -1, 0], [self.q_first, q_next])
        if len(written) == 1 and budget >= 1 and written[0] in self.places:
            q_next = self.q_second[self.places[written[0]]]
            return _tree([int(rng.choice(len(q_next), p=q_next))], [-1], [q_next])
        return EMPTY


def _contrary(law: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the law with its likely tokens in the opposite order, and a little mass outside them."""
    support = np.flatnonzero(law)
    support = support[np.argsort(-law[support], kind="stable")]
    q = np.zeros_like(law)
    q[support] = law[support][::-1] * (1 - _OUTSIDE)
    q[np.flatnonzero(law == 0)[0]] = _OUTSIDE
    return np.asarray(q / q.sum())


def _tree(tokens: Sequence[int], parents: Sequence[int], laws: Sequence[NDArray[np.float64]]) -> DraftTree:
    n = len(tokens)
    q = np.zeros((n + 1, len(laws[0])))
    q[: len(laws)] = laws
    return DraftTree(tuple(tokens), tuple(parents), ((Contrary.name,),) * n, (0.5,) * n, q)


class Careless:
    """The rejection rule with the textbook mistake: after a rejection it draws from p, not from what p has beyond q.

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


def examine(
    runner: Runner,
    question: Question,
    verifier: Verifier,
    drafter: Drafter | None,
    *,
    draws: int,
    false_alarm: float,
    tick: Callable[[int], None] = lambda count: None,
) -> ChiSquare:
    """Write the prompt's first two tokens with seeds 0 ... draws - 1 and compare the pairs with the target's law.

    tick: called with the number of draws that were just made.
    """
    places = {token: place for place, token in enumerate(question.tokens.tolist())}
    counts = np.zeros(question.second.shape, np.int64)
    stray = 0  # first tokens that the target never writes
    for first in range(0, draws, _TOGETHER):
        seeds = range(first, min(first + _TOGETHER, draws))
        for a, b in _pairs(runner, question, verifier, drafter, seeds):
            if a in places:
                counts[places[a], b] += 1
            else:
                stray += 1
        tick(len(seeds))
    return chi_square(np.append(counts.ravel(), stray), np.append(question.pairs.ravel(), 0.0), false_alarm)


def _pairs(
    runner: Runner, question: Question, verifier: Verifier, drafter: Drafter | None, seeds: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Yield the first two tokens of each seed. They are decoded together, from one prefill."""
    loop = Decoder(runner)
    options = Options(sampling=question.sampling, max_new_tokens=_LENGTH, strategy="none", salt=b"examine")
    sequences = []
    for seed in seeds:
        request = Request.of(question.prompt, options, seed=seed)
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
