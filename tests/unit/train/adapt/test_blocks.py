from __future__ import annotations

import numpy as np
import pytest
import torch

from outpace.train.adapt.blocks import Blocks, make_blocks, visible
from tests.adapting import CPU, blocks_of, conversation

END = 96


def rows_of(blocks: Blocks, sequence: int) -> list[tuple[int, int, int, bool]]:
    """Return position, input, target and whether the target is text, of each real row."""
    return [
        (int(p), int(x), int(y), bool(t))
        for p, x, y, t, real in zip(
            blocks.positions[sequence],
            blocks.inputs[sequence],
            blocks.targets[sequence],
            blocks.is_text[sequence],
            blocks.is_row[sequence],
            strict=True,
        )
        if real
    ]


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("is_ended", [True, False])
@pytest.mark.parametrize("length", [6, 9, 12, 13, 14])
def test_rows_are_those_that_a_loop_finds(shift: int, is_ended: bool, length: int) -> None:
    size, num_prompt = 4, 5
    own = conversation(num_prompt, length, END if is_ended else None)
    expected = []
    start = num_prompt - shift
    while start + shift < length:
        block = []
        for p in range(start, start + size):
            text = [*own.tokens.tolist(), *[END] * (2 * size)] if is_ended else own.tokens.tolist()
            if p + shift < len(text):
                block.append((p, text[p], text[p + shift], p + shift < length))
        if len(block) == size:
            expected += block
        start += size
    found = make_blocks([own], size, shift, [END], CPU)
    if not expected:
        assert found is None
        return
    assert found is not None
    assert rows_of(found, 0) == expected


def test_a_first_block_that_begins_late_leaves_out_tokens_and_moves_the_rest() -> None:
    own = conversation(5, 60, END)
    starts = set()
    for seed in range(40):
        blocks = blocks_of([own], seed=seed)
        start = int(blocks.starts[0])
        starts.add(start)
        rows = rows_of(blocks, 0)
        assert [row[0] for row in rows] == list(range(start, start + len(rows)))
        assert all(x == own.tokens[p] for p, x, _, is_text in rows if is_text)
    assert starts == {4, 5, 6, 7}


def test_conversations_in_a_batch_do_not_change_each_other() -> None:
    some = [conversation(3, 17, END), conversation(9, 30), conversation(1, 7, END), conversation(20, 22)]
    together = blocks_of(some)
    assert not together.is_row[3].any()  # too short for a block
    for i, own in enumerate(some[:3]):
        assert rows_of(together, i) == rows_of(blocks_of([own]), 0)


def test_clean_tokens_that_are_learned_are_those_before_the_responses() -> None:
    blocks = blocks_of([conversation(3, 9, END), conversation(6, 12)])
    found = [torch.nonzero(row)[:, 0].tolist() for row in blocks.is_response]
    assert found == [[2, 3, 4, 5, 6, 7], [5, 6, 7, 8, 9, 10]]


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("window", [None, 3, 6])
@pytest.mark.parametrize("is_causal", [False, True])
def test_a_row_sees_the_text_before_its_block_and_its_block(shift: int, window: int | None, is_causal: bool) -> None:
    """By a loop over all pairs of rows and keys."""
    size = 4
    blocks = blocks_of([conversation(3, 17, END), conversation(6, 15)], size, shift)
    found = visible(blocks, window, is_causal=is_causal)
    columns = blocks.tokens.shape[1]
    assert found.shape == (2, 1, blocks.is_row.shape[1], columns + blocks.is_row.shape[1])
    for s, row in np.argwhere(blocks.is_row.numpy()):
        position = int(blocks.positions[s, row])
        first = int(blocks.starts[s]) + row // size * size
        for key in range(columns):
            is_near = window is None or position - key < window
            assert bool(found[s, 0, row, key]) == (key < first and is_near)
        for other in range(blocks.is_row.shape[1]):
            is_near = window is None or row - other < window
            own = row // size == other // size and is_near and (other <= row or not is_causal)
            assert bool(found[s, 0, row, columns + other]) == own


def test_no_row_sees_nothing() -> None:
    blocks = blocks_of([conversation(1, 17, END), conversation(6, 7)])
    assert visible(blocks, 1, is_causal=True).any(dim=-1).all()
