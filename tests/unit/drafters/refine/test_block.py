from __future__ import annotations

from outpace.drafters.refine.block import Block, Guesses
from outpace.types.tree import NO_TOKEN


def filled(*tokens: int) -> Block:
    block = Block.masked_from(10, len(tokens))
    for place, token in enumerate(tokens):
        if token != NO_TOKEN:
            block.write(place, token, 0.5)
    return block


def test_a_block_begins_with_masks_only() -> None:
    block = Block.masked_from(10, 3)
    assert (len(block), block.masks, block.start, block.num_passes) == (3, [0, 1, 2], 10, 0)


def test_places_are_written_and_masked_again() -> None:
    block = filled(5, -1, 7)
    assert (block.masks, block.confidence) == ([1], [0.5, 0.0, 0.5])
    block.mask(0)
    assert (block.masks, block.confidence) == ([0, 1], [0.0, 0.0, 0.5])


def test_a_block_is_text_once_no_mask_stands_before_its_end() -> None:
    assert filled(5, -1, 7).text((), 3) is None
    assert filled(5, 6, 7).text((), 3) == [5, 6, 7]
    assert filled(5, 6, 7).text((6,), 3) == [5, 6], "an end token ends it"
    assert filled(5, 6, -1).text((6,), 3) == [5, 6], "masks behind an end token do not matter"
    assert filled(5, -1, 6).text((6,), 3) is None
    assert filled(5, 6, -1).text((), 2) == [5, 6], "nor do those behind the limit"


def test_a_block_can_be_cut() -> None:
    block = filled(5, 6, 7)
    block.cut(2)
    assert (block.tokens, block.confidence) == ([5, 6], [0.5, 0.5])


def test_guesses_need_no_more_than_tokens_and_probabilities() -> None:
    assert Guesses([1], [0.5]).kept == ()


def test_a_block_moves_on_over_its_first_places() -> None:
    block = filled(5, 6, -1, 7)
    block.remasked = {0, 3}
    moved = block.moved(2, 4)
    assert (moved.start, moved.tokens, moved.confidence) == (12, [-1, 7, -1, -1], [0.0, 0.5, 0.0, 0.0])
    assert moved.remasked == {1}
    assert block.moved(2, 1).tokens == [-1], "near the end of the context a block is shorter"
