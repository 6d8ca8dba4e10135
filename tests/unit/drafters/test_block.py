from __future__ import annotations

from typing import Any

import pytest

from outpace.drafters.block import BlockDrafter
from outpace.errors import UsageError
from outpace.runner import Runner
from outpace.types.tree import DraftTree
from tests.decoding import decode, tiny_ops, tiny_runner
from tests.trained import tiny_block, tiny_block_drafter

VOCAB = 97


def runner(**options: Any) -> Runner:
    return tiny_runner(ops=tiny_ops(), vocab_size=VOCAB, **options)


def recorded(drafter: BlockDrafter) -> list[tuple[int, int, DraftTree]]:
    """Return what the drafter proposes from now on, with each sequence's length and budget."""
    seen: list[tuple[int, int, DraftTree]] = []
    propose = drafter.propose

    def proposing(sequences: Any, budgets: Any) -> list[DraftTree]:
        trees = propose(sequences, budgets)
        seen.extend((len(s.tokens), b, tree) for s, b, tree in zip(sequences, budgets, trees, strict=True))
        return trees

    drafter.propose = proposing  # type: ignore[method-assign]
    return seen


def test_the_first_guess_is_that_of_the_whole_block_however_small_the_budget() -> None:
    """Masks look at each other: a block cut to the budget would guess something else."""
    firsts = set()
    for max_draft in (1, 2, 5):
        target = runner()
        drafter = tiny_block_drafter(target)
        seen = recorded(drafter)
        decode(target, [list(range(19))], drafter=drafter, max_new_tokens=12, max_draft=max_draft)
        (tree,) = [tree for length, _, tree in seen if length == 20]
        assert len(tree) == max_draft
        firsts.add((tree.tokens[0], tree.confidence[0]))
    assert len(firsts) == 1


def test_a_block_that_reaches_beyond_the_reserved_slots_borrows_a_block_of_the_cache() -> None:
    target = runner()
    drafter = tiny_block_drafter(target)
    seen = recorded(drafter)
    decode(target, [[1, 2, 3]], drafter=drafter, max_new_tokens=100, max_draft=1, check=True)
    beyond = [tree for length, budget, tree in seen if budget and 32 - length % 32 < 5 and length > 3]
    assert len(beyond) > 8
    assert all(beyond)  # none of them is empty
    assert target.cache.num_available == target.cache.capacity


def test_where_the_cache_has_no_block_to_lend_nothing_is_drafted_for_a_moment() -> None:
    target = runner(capacity=5)
    drafter = tiny_block_drafter(target)
    seen = recorded(drafter)
    texts = [list(range(50)), list(range(40, 90))]
    found = decode(target, texts, drafter=drafter, max_new_tokens=38, max_draft=1, check=True)
    assert [bool(tree) for length, _, tree in seen if length == 61] == [True, False]  # one block for two of them
    for g, text in zip(found, texts, strict=True):
        assert g.output.tokens == decode(runner(), [text], max_new_tokens=38)[0].output.tokens


def test_near_the_end_of_the_context_the_block_is_shorter() -> None:
    target = runner(max_position_embeddings=40)
    drafter = BlockDrafter(tiny_block(target.model, num_masks=12), target, min_confidence=0.0)
    (g,) = decode(target, [list(range(10))], drafter=drafter, max_new_tokens=None, max_draft=12)
    assert len(g.output.tokens) == 30
    assert g.stats.proposed["block"] > 0


def test_a_target_whose_every_layer_slides_is_drafted_for_and_little_is_held() -> None:
    target = tiny_runner("mistral", ops=tiny_ops(), vocab_size=VOCAB, sliding_window=40)
    drafter = tiny_block_drafter(target)
    held = []
    observe = drafter.observe

    def observing(steps: Any, passed: Any) -> None:
        observe(steps, passed)
        held.extend(len(drafter._states.of(part.id).rows) for part in passed.batch)

    drafter.observe = observing  # type: ignore[method-assign]
    (g,) = decode(target, [[1, 2, 3]], drafter=drafter, max_new_tokens=100)
    assert g.stats.proposed["block"] > 200
    assert max(held) < 20
    assert drafter.group in target.cache.groups


def test_a_second_drafter_has_keys_and_values_of_its_own() -> None:
    target = runner()
    first, second = tiny_block_drafter(target), tiny_block_drafter(target, seed=1)
    assert (first.group, second.group) == ("block", "block 2")


def test_a_minimum_that_is_no_chance_is_refused() -> None:
    with pytest.raises(UsageError, match=r"min_confidence must be in \[0, 1\], got -1"):
        tiny_block_drafter(runner(), min_confidence=-1)
