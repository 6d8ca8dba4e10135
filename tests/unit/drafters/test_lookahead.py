import pytest

from outpace.drafters import Lookahead
from outpace.errors import UsageError
from outpace.trace import Step, Times
from outpace.types.tree import DraftTree, merge
from tests.simulated import NO_PASS, SimulatedView, hashing, simulate, verify

PROMPT = [10, 11, 12, 13, 14, 15, 16, 17]


def counting(tokens):
    """Write one more than the last token: a target that can be followed from any context."""
    return tokens[-1] + 1


def paths(tree, nodes=None):
    return {tuple(tree.tokens[n] for n in tree.path(node)) for node in (range(len(tree)) if nodes is None else nodes)}


def steps(drafter, view, target, count, budget=16):
    trees = []
    for _ in range(count):
        trees.append(drafter.propose([view], [budget])[0])
        drafter.observe([verify(view, trees[-1], target)], NO_PASS)
    return trees


def test_the_window_is_a_chain_of_guesses_with_a_diagonal_hanging_from_each():
    drafter = Lookahead(window=3, ngram=4)
    [tree] = drafter.propose([SimulatedView.start(1, PROMPT)], [16])
    (a, b, c), (d, e, f), (g, h, i) = drafter._windows[1].diagonals.values()
    assert paths(tree) == {(a,), (a, b), (a, b, c)} | {(a, d), (a, d, e), (a, d, e, f)} | {
        (a, d, g),
        (a, d, g, h),
        (a, d, g, h, i),
    }
    assert tree.reserved == set(range(len(tree)))


def test_new_diagonals_are_pieces_of_the_text():
    drafter = Lookahead(window=4, ngram=4)
    drafter.propose([SimulatedView.start(1, PROMPT)], [16])
    circle = PROMPT + PROMPT
    for diagonal in drafter._windows[1].diagonals.values():
        assert list(diagonal) in [circle[at : at + 3] for at in range(len(PROMPT))]


def test_a_pick_at_a_diagonals_end_moves_it_on_by_one_position_and_fills_the_pool():
    drafter, view = Lookahead(window=2, ngram=3), SimulatedView.start(1, PROMPT)
    drafter.propose([view], [16])
    before = dict(drafter._windows[1].diagonals)
    assert list(before) == [8, 9]
    steps(drafter, view, counting, 1)
    after = drafter._windows[1]
    for position, (first, second) in before.items():
        assert after.diagonals[position + 1] == (second, second + 1)
        assert after.pool[first][-1] == (second, second + 1)


def test_pooled_ngrams_that_begin_with_the_last_token_are_verified():
    drafter, view = Lookahead(window=1, ngram=4), SimulatedView.start(1, PROMPT)
    drafter.propose([view], [8])
    drafter._windows[1].pool[17] = [(1, 2, 3), (18, 19, 20)]
    [tree] = drafter.propose([view], [12])
    verified = paths(tree, set(range(len(tree))) - tree.reserved)
    assert verified == {(18,), (18, 19), (18, 19, 20), (1,), (1, 2), (1, 2, 3)}
    assert verify(view, tree, counting).tokens == [18, 19, 20, 21]


def test_it_accepts_what_the_target_made_of_its_guesses():
    view = SimulatedView.start(1, [*range(30), 3])  # 3 again: the pool learns while the target counts up once more
    drafter = Lookahead(window=4, ngram=4)
    steps(drafter, view, counting, 12)
    assert view.output == list(range(4, 4 + len(view.output)))
    assert len(view.output) >= 24


def test_the_pool_keeps_the_latest_guesses_of_a_token():
    drafter, pool = Lookahead(guesses=2), {}
    for rest in ((1, 1), (2, 2), (1, 1), (3, 3)):
        drafter._remember(pool, 7, rest)
    assert pool == {7: [(1, 1), (3, 3)]}


def test_the_pool_takes_at_most_half_of_a_budget_and_the_window_whole_diagonals_of_the_rest():
    drafter, view = Lookahead(window=4, ngram=3), SimulatedView.start(1, PROMPT)
    sizes = {}
    for budget in range(1, 17):
        [tree] = drafter.propose([view], [budget])
        sizes[budget] = len(drafter._windows[1].diagonals)
        assert len(tree) <= budget
    assert sizes == {budget: min(4, budget // 2) for budget in range(1, 17)}  # the pool is empty
    drafter._windows[1].pool[17] = [(1, 2), (3, 4), (5, 6), (7, 8)]
    for budget in range(1, 17):
        [tree] = drafter.propose([view], [budget])
        width = len(drafter._windows[1].diagonals)
        assert width == min(4, (budget - budget // 2) // 2)
        assert len(tree) == budget


def test_its_window_is_found_again_in_a_merged_tree():
    alone, merged = Lookahead(window=3), Lookahead(window=3)
    one, other = SimulatedView.start(1, PROMPT), SimulatedView.start(1, PROMPT)
    for _ in range(6):
        [tree] = alone.propose([one], [8])
        [same] = merged.propose([other], [8])
        assert same == tree
        step = verify(one, tree, counting)
        alone.observe([step], NO_PASS)
        strange = DraftTree.chain([5, *tree.tokens[:2]], "other", 1.0)
        larger = verify(other, merge([strange, same], 16), counting)
        assert larger.tokens == step.tokens
        merged.observe([larger], NO_PASS)
    assert merged._windows == alone._windows


def test_diagonals_that_were_cut_away_wait_at_their_positions():
    drafter, view = Lookahead(window=3, ngram=3), SimulatedView.start(1, PROMPT)
    [tree] = drafter.propose([view], [8])
    before = dict(drafter._windows[1].diagonals)
    first = tree.path(tree.children(0)[0])
    cut = DraftTree(tree.tokens[:1], (-1,), tree.sources[:1], tree.confidence[:1])
    assert first[0] == 0
    drafter.observe([verify(view, cut, counting)], NO_PASS)
    drafter.propose([view], [8])
    after = drafter._windows[1].diagonals
    assert list(after) == [9, 10, 11]
    assert (after[9], after[10]) == (before[9], before[10])


def test_a_step_without_its_window_teaches_nothing():
    drafter, view = Lookahead(), SimulatedView.start(1, PROMPT)
    drafter.propose([view], [8])
    before = (dict(drafter._windows[1].diagonals), dict(drafter._windows[1].pool))
    view.tokens.append(18)
    tree = DraftTree.chain(list(before[0][8]), "other")
    drafter.observe([verify(view, tree, counting)], NO_PASS)
    assert (drafter._windows[1].diagonals, drafter._windows[1].pool) == before


def test_picks_that_the_rule_did_not_make_are_not_taken():
    drafter, view = Lookahead(), SimulatedView.start(1, PROMPT)
    [tree] = drafter.propose([view], [8])
    target_tokens = [99] + [-1] * len(tree)
    drafter.observe([Step(1, len(view.tokens), 1, tree, target_tokens, [], [99], Times(0.0, 0.0, 0.0, 0.0))], NO_PASS)
    assert drafter._windows[1].pool == {}


def test_diagonals_stay_at_the_positions_they_guess_whatever_is_accepted():
    drafter, target = Lookahead(window=4, ngram=4), hashing(4)
    view = SimulatedView.start(1, PROMPT)
    for _ in range(40):
        [tree] = drafter.propose([view], [16])
        position = len(view.tokens)
        assert list(drafter._windows[1].diagonals)[:1] == [position]
        guessed = {at: diagonal for at, diagonal in drafter._windows[1].diagonals.items() if at > position}
        step = verify(view, tree, target)
        drafter.observe([step], NO_PASS)
        for at, diagonal in guessed.items():
            assert drafter._windows[1].diagonals[at + 1][:-1] == diagonal[1:]


def test_state_grows_with_the_text_no_faster():
    drafter = Lookahead(window=4, ngram=3, guesses=2)
    view = SimulatedView.start(1, PROMPT)
    steps(drafter, view, hashing(1000), 200, budget=8)
    window = drafter._windows[1]
    assert len(window.diagonals) <= 5
    assert sum(map(len, window.pool.values())) <= 4 * 200
    assert max(map(len, window.pool.values())) <= 2


def test_it_is_deterministic():
    runs = [simulate(Lookahead(), hashing(20), PROMPT, 100).trees for _ in range(2)]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("options", [{"window": 0}, {"ngram": 1}, {"guesses": 65}])
def test_options_that_cannot_work_are_refused_with_what_is_allowed(options):
    [name] = options
    with pytest.raises(UsageError, match=rf"{name} must be in \[\d, 64\], got {options[name]}"):
        Lookahead(**options)
