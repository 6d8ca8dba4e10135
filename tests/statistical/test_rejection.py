"""Rejection sampling keeps the target's distribution: exactly on small vocabularies, by chi-square on larger ones."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from outpace.drafters.draft_model import DraftModel
from outpace.drafters.ngram import NGram
from outpace.engine.verify import REJECTION_SAMPLING, PhiloxChance, reject
from outpace.errors import DrafterError
from outpace.measure.certify.chi_square import chi_square
from outpace.runner import Runner
from outpace.types.tree import DraftTree, merge
from tests.decoding import decode, request, tiny_ops, tiny_runner

Probs = NDArray[np.float64]


class Script:
    """Chance that follows a script of yes and no, and multiplies up how likely that was."""

    def __init__(self, answers: tuple[bool, ...]) -> None:
        self.answers = iter(answers)
        self.probability = 1.0
        self.asked = 0
        self.probs: NDArray[np.float64] | None = None

    def accepts(self, probability: float, depth: int, token: int) -> bool:
        self.asked += 1
        answer = next(self.answers)
        self.probability *= probability if answer else 1.0 - probability
        return answer

    def draw(self, probs: NDArray[np.float64], depth: int) -> int:
        self.probs = probs
        return 0


def all_drafts(q_of: dict[tuple[int, ...], NDArray[np.float64]], shape: tuple[int, ...]) -> Iterator:
    """Yield (probability, tree) over every draft of this shape: level d has shape[d] siblings, the first goes on."""

    def grow(path: tuple[int, ...], level: int) -> Iterator[tuple[float, list[tuple[tuple[int, ...], int]]]]:
        if level == len(shape):
            yield 1.0, []
            return
        q = q_of[path]
        support = [t for t in range(len(q)) if q[t] > 0]
        for siblings in itertools.permutations(support, min(shape[level], len(support))):
            probability, left = 1.0, support.copy()
            for token in siblings:
                probability *= q[token] / sum(q[left])  # not 1 minus what is gone: that cancels
                left.remove(token)
            for deeper_probability, deeper in grow((*path, siblings[0]), level + 1):
                yield probability * deeper_probability, [*((path, t) for t in siblings), *deeper]

    for probability, nodes in grow((), 0):
        index = {(): -1}
        for path, token in nodes:
            index[(*path, token)] = len(index) - 1
        tokens = tuple(token for _, token in nodes)
        parents = tuple(index[path] for path, _ in nodes)
        n = len(tokens)
        q = np.zeros((n + 1, len(q_of[()])))
        for path, node in index.items():
            if path in q_of:
                q[node + 1] = q_of[path]
        yield probability, DraftTree(tokens, parents, (("d",),) * n, (0.5,) * n, q)


def distribution_of_outputs(
    p: dict[tuple[int, ...], NDArray[np.float64]], q: dict, shape: tuple[int, ...], depth: int, rule=reject
) -> dict[tuple[int, ...], float]:
    """Return the exact distribution of the first `depth` tokens that the rule writes, then of p."""
    vocab = len(p[()])
    total: Counter[tuple[int, ...]] = Counter()
    for draft_probability, tree in all_drafts(q, shape):
        paths = [()] + [tuple(tree.tokens[i] for i in tree.path(node)) for node in range(len(tree))]
        probs = np.stack([p[path] for path in paths])
        for answers in itertools.product([False, True], repeat=len(tree)):
            script = Script(answers)
            path, _ = rule(tree, probs, script)
            if any(answers[script.asked :]):
                continue  # the same run as with "no" there
            accepted = tuple(tree.tokens[node] for node in path)
            for token in range(vocab):
                text = (*accepted, token)
                rest = draft_probability * script.probability * script.probs[token]
                if rest:
                    _spread(total, p, text, rest, depth)
    return total


def _spread(total: Counter, p: dict, text: tuple[int, ...], mass: float, depth: int) -> None:
    if len(text) >= depth:
        total[text[:depth]] += mass
        return
    for token, probability in enumerate(p[text]):
        _spread(total, p, (*text, token), mass * probability, depth)


def random_distributions(
    rng: np.random.Generator, vocab: int, depth: int, sparse: bool
) -> dict[tuple[int, ...], Probs]:
    probs = {}
    for length in range(depth + 1):
        for path in itertools.product(range(vocab), repeat=length):
            mass = rng.gamma(0.5, size=vocab) + 1e-9
            if sparse:
                mass[rng.random(vocab) < 0.3] = 0.0
                mass[rng.integers(vocab)] += 1.0
            probs[path] = mass / mass.sum()
    return probs


def plain_distribution(p: dict, depth: int) -> dict[tuple[int, ...], float]:
    total: Counter[tuple[int, ...]] = Counter()
    _spread(total, p, (), 1.0, depth)
    return total


def distance(a: dict, b: dict) -> float:
    return max(abs(a.get(text, 0.0) - b.get(text, 0.0)) for text in {*a, *b})


SHAPES = [(3, (1,)), (3, (1, 1)), (4, (2,)), (4, (3,)), (6, (4,)), (3, (2, 2)), (3, (1, 2, 1)), (2, (2, 2, 2))]


@pytest.mark.parametrize(("vocab", "shape"), SHAPES)
@pytest.mark.parametrize("sparse", [False, True])
def test_the_output_has_exactly_the_targets_distribution(vocab: int, shape: tuple[int, ...], sparse: bool) -> None:
    rng = np.random.default_rng(vocab * 100 + len(shape))
    depth = len(shape) + 1
    p, q = random_distributions(rng, vocab, depth, sparse), random_distributions(rng, vocab, depth, sparse)
    assert distance(distribution_of_outputs(p, q, shape, depth), plain_distribution(p, depth)) < 1e-12


def greedy_for_the_draft(tree: DraftTree, p: Probs, chance: Script) -> tuple[list[int], int]:
    """A biased rule: the residual is drawn from p itself, not from what p has beyond q."""
    path, node = [], -1
    for child in tree.children(node)[:1]:
        token = tree.tokens[child]
        assert tree.q is not None
        if chance.accepts(min(1.0, p[0][token] / tree.q[0][token]), 0, token):
            path, node = [child], child
    return path, chance.draw(p[node + 1], len(path))


def test_a_biased_rule_is_caught_by_the_exact_distribution() -> None:
    rng = np.random.default_rng(7)
    p, q = random_distributions(rng, 4, 2, False), random_distributions(rng, 4, 2, False)
    assert distance(distribution_of_outputs(p, q, (1,), 2, rule=greedy_for_the_draft), plain_distribution(p, 2)) > 1e-3


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(3, (2,)), (5, (2,)), (3, (1, 2))]))
@example(1980, (3, (1, 2)))  # its q has one token of probability 0.99998
def test_any_p_and_q_give_the_targets_distribution(seed: int, case: tuple[int, tuple[int, ...]]) -> None:
    vocab, shape = case
    rng = np.random.default_rng(seed)
    depth = len(shape) + 1
    p, q = random_distributions(rng, vocab, depth, True), random_distributions(rng, vocab, depth, True)
    assert distance(distribution_of_outputs(p, q, shape, depth), plain_distribution(p, depth)) < 1e-12


@pytest.mark.parametrize("biased", [False, True])
def test_chi_square_on_a_vocabulary_of_500_passes_and_catches_a_biased_control(biased: bool) -> None:
    """Coins and noise from Philox, as in use. False alarm: 10^-6; the control is far outside."""
    vocab, draws = 500, 4000
    rng = np.random.default_rng(3)
    p, q = (m / m.sum() for m in (rng.gamma(0.3, size=vocab), rng.gamma(0.3, size=vocab)))
    runner = tiny_runner()
    counts = np.zeros(vocab, np.int64)
    for seed in range(draws):
        scheduled = _scheduled(runner, seed)
        token = int(np.argmax(np.log(q) + _noise(seed, vocab)))
        tree = DraftTree((token,), (-1,), (("d",),), (0.5,), np.stack([q, q]))
        probs = np.stack([p, p])
        if biased:
            path, last = greedy_for_the_draft(tree, probs, PhiloxChance(scheduled))
        else:
            path, last = reject(tree, probs, PhiloxChance(scheduled))
        counts[token if path else last] += 1
    assert chi_square(counts, p, false_alarm=1e-6).passed != biased


def _noise(seed: int, vocab: int) -> NDArray[np.float32]:
    from outpace.ops import philox

    return philox.gumbel(seed, 5, vocab, 0, 0)


def _scheduled(runner: Runner, seed: int):
    from outpace.runner import ScheduledSequence

    asked = request((1, 2, 3, 4, 5), max_new_tokens=4, seed=seed)
    return ScheduledSequence(runner.cache.open(()), asked, list(asked.prompt), 5)


def test_it_is_refused_for_a_merged_tree() -> None:
    tree = DraftTree.chain([1, 2], "d")
    q = np.full((3, 4), 0.25)
    own = DraftTree(tree.tokens, tree.parents, tree.sources, tree.confidence, q)
    reject(own, q, PhiloxChance(_scheduled(tiny_runner(), 1)))  # its own tree is fine
    with pytest.raises(DrafterError, match="merged, pruned or has no q"):
        reject(merge([own, own], 8), q, PhiloxChance(_scheduled(tiny_runner(), 1)))


def test_it_is_refused_for_a_pruned_tree() -> None:
    q = np.full((3, 4), 0.25)
    own = DraftTree((1, 2), (-1, 0), (("d",),) * 2, (0.5, 0.5), q)
    with pytest.raises(DrafterError, match="merged, pruned or has no q"):
        reject(merge([own], 1), q[:2], PhiloxChance(_scheduled(tiny_runner(), 1)))


def test_a_drafter_without_q_is_switched_off_and_the_text_goes_on() -> None:
    (g,) = decode(
        tiny_runner(),
        [[1, 2, 1, 2, 1, 2]],
        drafter=NGram(),
        verifier=REJECTION_SAMPLING,
        temperature=1.0,
        max_new_tokens=64,
        may_warn=True,
    )
    assert len(g.output.tokens) == 64
    assert "no q" in g.stats.warnings[0]


def _assert_target_distribution(target: Runner, **how: Any) -> None:
    """Hold the tokens at one place over many seeds against the target's distribution (false alarm 10^-6)."""
    counts = np.zeros(24, np.int64)
    for seed in range(700):
        (g,) = decode(target, [[5, 6, 7]], temperature=1.5, max_new_tokens=3, seed=seed, max_draft=4, **how)
        counts[g.output.tokens[0]] += 1
    assert chi_square(counts, _probs_of_first(target, (5, 6, 7), 1.5), false_alarm=1e-6).passed


@pytest.mark.parametrize(("branches", "vocab_size"), [(1, 24), (2, 24), (2, 20), (2, 40)])
def test_a_draft_model_keeps_the_targets_distribution(branches: int, vocab_size: int) -> None:
    """The whole loop. The draft model may have fewer token ids than the target, or more."""
    target = tiny_runner(ops=tiny_ops(), vocab_size=24)
    cheap = tiny_runner(ops=target.ops, vocab_size=vocab_size, seed=1)
    drafter = DraftModel(cheap.join(target.cache, "draft"), 24, branches=branches, min_confidence=0.0)
    _assert_target_distribution(target, drafter=drafter, verifier=REJECTION_SAMPLING, verification="rejection")


def test_plain_decoding_has_the_targets_distribution() -> None:
    _assert_target_distribution(tiny_runner(ops=tiny_ops(), vocab_size=24))


def _probs_of_first(runner: Runner, prompt: tuple[int, ...], temperature: float) -> Probs:
    from outpace.runner import ScheduledSequence

    asked = request(prompt, max_new_tokens=1, temperature=temperature)
    scheduled = ScheduledSequence(runner.cache.open(()), asked, list(prompt), len(prompt))
    probs = runner.probs(runner.forward([scheduled]).logits, [scheduled])[0][0]
    scheduled.table.close()
    return probs


def test_greedy_requests_write_plain_decodings_text_under_it() -> None:
    target = tiny_runner()
    drafter = DraftModel(tiny_runner(seed=1).join(target.cache, "draft"), 97, min_confidence=0.0)
    (plain,) = decode(target, [[5, 6, 7]], max_new_tokens=64)
    (drafted,) = decode(
        target, [[5, 6, 7]], drafter=drafter, verifier=REJECTION_SAMPLING, verification="rejection", max_new_tokens=64
    )
    assert drafted.output.tokens == plain.output.tokens


def test_an_accepted_node_behind_which_nothing_can_be_sampled_ends_the_path_before_it() -> None:
    p = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    tree = DraftTree((1,), (-1,), (("d",),), (0.5,), np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))
    assert reject(tree, p, Script((True,))) == ([], 1)
