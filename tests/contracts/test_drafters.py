"""The contract of `Drafter`, run against every drafter that needs no model.

Another drafter joins by a line in `DRAFTERS`.
"""

import pickle
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outpace.drafters import Combined, Jacobi, Lookahead, NGram, Prediction, Suffix
from outpace.drafters.protocol import Drafter
from outpace.types.tree import EMPTY, DraftTree, merge
from tests.simulated import NO_PASS, SimulatedView, hashing, plain, reciting, simulate, verify

MELODY = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]  # what the reciting target repeats, and what prediction expects

DRAFTERS: dict[str, Callable[[], Drafter]] = {
    "ngram": NGram,
    "ngram of one token": lambda: NGram(min_ngram=1, max_ngram=1),
    "suffix": Suffix,
    "suffix, eager": lambda: Suffix(min_match=1, max_branches=5, min_score=0.0),
    "suffix, remembering": lambda: Suffix(remember=True),
    "prediction": lambda: Prediction(MELODY * 12),
    "jacobi": Jacobi,
    "lookahead": Lookahead,
    "lookahead, deep": lambda: Lookahead(window=2, ngram=5, guesses=1),
    "combined": lambda: Combined([NGram(), Suffix(), Prediction(MELODY * 12), Lookahead(window=2)]),
}
REMEMBERS = {"suffix, remembering"}  # what has ended leaves something behind, on purpose


@pytest.fixture(params=DRAFTERS)
def make(request):
    return DRAFTERS[request.param]


every_drafter = pytest.mark.parametrize("kind", DRAFTERS)
forgetting_drafter = pytest.mark.parametrize("kind", [kind for kind in DRAFTERS if kind not in REMEMBERS])
few_examples = settings(max_examples=25, deadline=None)  # times the number of drafters
texts = st.lists(st.integers(0, 3), min_size=1, max_size=40)
budgets = st.integers(0, 12)


def run_together(drafter: Drafter, targets, prompts, step_budgets: Sequence[int]) -> list[list[DraftTree]]:
    """Return each request's trees when all are decoded in one batch."""
    sequences = [SimulatedView.start(number, prompt) for number, prompt in enumerate(prompts)]
    seen: list[list[DraftTree]] = [[] for _ in sequences]
    for budget in step_budgets:
        trees = drafter.propose(sequences, [budget] * len(sequences))
        drafter.observe([verify(*each) for each in zip(sequences, trees, targets, strict=True)], NO_PASS)
        for trees_of_one, tree in zip(seen, trees, strict=True):
            trees_of_one.append(tree)
    return seen


@every_drafter
@few_examples
@given(text=texts, prompt=texts, step_budgets=st.lists(budgets, max_size=12))
def test_drafts_stay_within_their_budgets_and_within_the_words_of_text_and_prediction(kind, text, prompt, step_budgets):
    drafter = DRAFTERS[kind]()
    names = {drafter.name, *(owned.name for owned in getattr(drafter, "drafters", ()))}
    sequence = SimulatedView.start(1, prompt)
    for budget in step_budgets:
        known = {*sequence.tokens, *MELODY} if "prediction" in names else {*sequence.tokens}
        if {"jacobi", "lookahead"} & names:
            known |= {*text}  # it drafts what the target picked in the contexts that it made up
        [tree] = drafter.propose([sequence], [budget])
        assert len(tree) <= budget
        assert {*tree.tokens} <= known
        assert all(credits and {*credits} <= names for credits in tree.sources)
        drafter.observe([verify(sequence, tree, reciting(text))], NO_PASS)


def test_a_budget_of_zero_gives_the_empty_draft(make):
    drafter = make()
    sequence = SimulatedView.start(1, MELODY * 4)
    for _ in range(3):
        assert list(drafter.propose([sequence, sequence], [0, 0])) == [EMPTY, EMPTY]
        drafter.observe([verify(sequence, EMPTY, reciting(MELODY))], NO_PASS)
    assert list(drafter.propose([], [])) == []
    drafter.observe([], NO_PASS)


@every_drafter
@few_examples
@given(
    text=texts,
    other=texts,
    prompt=texts,
    step_budgets=st.lists(budgets, min_size=1, max_size=12),
)
def test_what_a_batch_neighbour_does_changes_no_draft(kind, text, other, prompt, step_budgets):
    alone = run_together(DRAFTERS[kind](), [reciting(text)], [prompt], step_budgets)
    both = run_together(DRAFTERS[kind](), [reciting(text), reciting(other)], [prompt, other], step_budgets)
    assert both[0] == alone[0]


@forgetting_drafter
def test_a_request_that_comes_and_goes_in_between_changes_no_draft(kind):
    def trees(disturbed):
        drafter, sequence, seen = DRAFTERS[kind](), SimulatedView.start(1, MELODY), []
        for step in range(12):
            if disturbed:
                guest = SimulatedView.start(100 + step, MELODY[::-1] * 2)
                drafter.observe([verify(guest, drafter.propose([guest], [8])[0], reciting(MELODY[::-1]))], NO_PASS)
                drafter.forget(guest.id)
            seen.append(drafter.propose([sequence], [8])[0])
            drafter.observe([verify(sequence, seen[-1], reciting(MELODY))], NO_PASS)
        return seen

    assert trees(disturbed=True) == trees(disturbed=False)


def test_the_same_history_gives_the_same_drafts(make):
    target = hashing(vocab_size=5)
    assert simulate(make(), target, [1, 2, 3], 80).trees == simulate(make(), target, [1, 2, 3], 80).trees


def test_proposing_again_without_a_step_in_between_gives_the_same_draft(make):
    drafter, sequence = make(), SimulatedView.start(1, MELODY * 2)
    for _ in range(8):
        trees = [drafter.propose([sequence], [8])[0] for _ in range(3)]
        assert trees[0] == trees[1] == trees[2]
        drafter.observe([verify(sequence, trees[0], reciting(MELODY))], NO_PASS)


@forgetting_drafter
def test_what_forgotten_requests_leave_behind_is_bounded(kind):
    drafter = DRAFTERS[kind]()

    def serve(numbers):
        for number in numbers:
            sequence = SimulatedView.start(number, [number % 90, *MELODY * 5])
            for _ in range(5):
                [tree] = drafter.propose([sequence], [8])
                drafter.observe([verify(sequence, tree, reciting(MELODY))], NO_PASS)
            drafter.forget(number)
        return len(pickle.dumps(drafter))

    few = serve(range(10, 30))  # a few states are kept for requests that continue them
    assert serve(range(30, 60)) <= 1.1 * few
    drafter.forget(12345)  # unknown: nothing happens


@forgetting_drafter
def test_a_number_that_is_used_again_starts_afresh(kind):
    used, fresh = DRAFTERS[kind](), DRAFTERS[kind]()
    simulate(used, reciting([7, 7, 8]), [7], 50)
    assert simulate(used, reciting(MELODY), MELODY, 50).trees == simulate(fresh, reciting(MELODY), MELODY, 50).trees


def test_no_list_of_the_loop_is_kept(make):
    lent, own = make(), make()
    sequence = SimulatedView.start(1, MELODY * 2)
    for _ in range(10):
        tokens = list(sequence.tokens)
        [tree] = lent.propose([SimulatedView(1, sequence.request, tokens)], [8])
        tokens.clear()
        assert own.propose([sequence], [8]) == [tree]
        step = verify(sequence, tree, reciting(MELODY))
        lent.observe([step], NO_PASS)
        own.observe([step], NO_PASS)


class CountedList(list):
    """A list that counts how many of its items were read."""

    num_read = 0

    def __getitem__(self, key):
        got = super().__getitem__(key)
        self.num_read += len(got) if isinstance(key, slice) else 1
        return got

    def __iter__(self):
        self.num_read += len(self)
        return super().__iter__()


def test_a_step_reads_what_is_new_not_the_whole_text(make):
    drafter = make()
    sequence = SimulatedView.start(1, MELODY * 400)
    sequence.tokens = CountedList(sequence.tokens)
    drafter.propose([sequence], [8])
    for _ in range(5):
        sequence.tokens.append(reciting(MELODY)(sequence.tokens))
        sequence.tokens.num_read = 0
        drafter.propose([sequence], [8])
        assert 0 < sequence.tokens.num_read < 200


@every_drafter
@few_examples
@given(
    text=texts,
    prompt=texts,
    steps=st.lists(st.tuples(budgets, st.lists(st.integers(0, 3), max_size=4), budgets), max_size=15),
)
def test_the_text_is_the_targets_whatever_else_was_merged_in_or_cut_away(kind, text, prompt, steps):
    drafter, target = DRAFTERS[kind](), reciting(text)
    sequence = SimulatedView.start(1, prompt)
    for budget, others, room in steps:
        [tree] = drafter.propose([sequence], [budget])
        tree = merge([DraftTree.chain(others, "other", 0.6), tree], room)
        drafter.observe([verify(sequence, tree, target)], NO_PASS)
    assert sequence.output == plain(target, prompt, len(sequence.output))


@pytest.mark.parametrize("budget", [1, 3, 8, 16])
@pytest.mark.parametrize("target", [reciting(MELODY), hashing(4), hashing(50), hashing(10**6)])
def test_the_text_is_plain_decodings_at_every_budget(make, target, budget):
    assert simulate(make(), target, MELODY, 100, budget).output == plain(target, MELODY, 100)


def test_repetitive_text_takes_clearly_fewer_steps_than_tokens(make):
    run = simulate(make(), reciting(MELODY), MELODY, 200)
    assert run.tokens_per_step > 1.8
