"""Sampling batches: what is built for which rows, and what is left out."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from outpace.ops.sampling import LastBatches, Ragged, SamplingBatch, SamplingRows
from outpace.types import NUMERIC_PARAMS, SamplingParams

ARRAYS = [field.name for field in fields(SamplingBatch) if field.name != "num_rows"]


def mask(*tokens: int) -> NDArray[np.uint32]:
    return np.array([sum(1 << token for token in tokens)], np.uint32)


def lists(ragged: Ragged | None, num_rows: int) -> list[list[float]]:
    assert ragged is not None
    return [ragged[row].tolist() for row in range(num_rows)]


def test_rows_whose_largest_logit_wins_need_no_arrays() -> None:
    rows = SamplingRows()
    rows.add(SamplingParams(), 7, 1, [3, 4])
    rows.add(SamplingParams(), 8, 0, [9], masks=[None])
    batch = rows.build()
    assert len(batch) == 3
    assert [getattr(batch, name) for name in ARRAYS] == [None] * len(ARRAYS)
    assert batch is SamplingBatch.greedy(3)


@pytest.mark.parametrize(
    ("params", "masks"),
    [
        ({"temperature": 1.0}, ()),
        ({"frequency_penalty": 1.0}, ()),
        ({"logit_bias": {1: 1.0}}, ()),
        ({}, (mask(1),)),
    ],
)
def test_any_other_row_makes_the_whole_batch_one_of_arrays(params: dict[str, Any], masks: Any) -> None:
    rows = SamplingRows()
    rows.add(SamplingParams(), 0, 0, [0, 0])
    rows.add(SamplingParams(**params), 0, 0, [5], masks=masks)
    batch = rows.build()
    assert batch.params is not None
    assert batch.params.shape == (3, len(NUMERIC_PARAMS))


def built() -> SamplingBatch:
    rows = SamplingRows()
    rows.add(SamplingParams(), 0, 0, [0])
    rows.add(
        SamplingParams(temperature=0.5, top_k=9, presence_penalty=1.0, logit_bias={3: 2.0, 4: -math.inf}),
        2**64 - 1,
        2**32 - 1,
        [10, 11, 11],
        prompt=[1, 2],
        output=(5, 6),
        paths=[(), (7,), (8,)],
        masks=[mask(1, 2), None, mask(31)],
        stream=2,
    )
    rows.add(SamplingParams(temperature=2.0, repetition_penalty=1.5), 5, 0, [20, 21], prompt=(9,), output=[])
    return rows.build()


def test_every_row_has_its_own_entry() -> None:
    batch = built()
    assert batch.params is not None
    columns = {name: batch.params[:, i].tolist() for i, name in enumerate(NUMERIC_PARAMS)}
    assert columns["temperature"] == [0.0, 0.5, 0.5, 0.5, 2.0, 2.0]
    assert columns["top_k"] == [0, 9, 9, 9, 0, 0]
    assert columns["repetition_penalty"] == [1.0, 1.0, 1.0, 1.0, 1.5, 1.5]
    noise = [batch.seeds, batch.sample_indices, batch.positions, batch.streams]
    assert [x.tolist() for x in noise if x is not None] == [
        [0, *[2**64 - 1] * 3, 5, 5],
        [0, *[2**32 - 1] * 3, 0, 0],
        [0, 10, 11, 11, 20, 21],
        [0, 2, 2, 2, 0, 0],
    ]
    assert lists(batch.prompts, 6) == [[], [1, 2], [1, 2], [1, 2], [9], [9]]
    assert lists(batch.outputs, 6) == [[], [5, 6], [5, 6, 7], [5, 6, 8], [], []]
    assert lists(batch.bias_tokens, 6) == [[], [3, 4], [3, 4], [3, 4], [], []]
    assert lists(batch.biases, 6) == [[], [2.0, -math.inf], [2.0, -math.inf], [2.0, -math.inf], [], []]
    assert batch.masks is not None
    assert batch.has_mask is not None
    assert batch.has_mask.tolist() == [False, True, False, True, False, False]
    assert batch.masks[[1, 3], 0].tolist() == [0b110, 1 << 31]


def test_rows_of_one_sequence_share_their_prompt_and_biases() -> None:
    batch = built()
    assert batch.prompts is not None
    assert batch.biases is not None
    assert batch.prompts.values.tolist() == [1, 2, 9]
    assert batch.biases.values.tolist() == [2.0, -math.inf]


def test_selecting_takes_the_same_rows_of_every_array() -> None:
    batch, rows = built(), [4, 2, 2]
    chosen = batch.select(rows)
    assert len(chosen) == 3
    for name in ARRAYS:
        x, y = getattr(batch, name), getattr(chosen, name)
        if isinstance(x, Ragged):
            assert lists(y, 3) == [lists(x, 6)[row] for row in rows]
        else:
            assert y.tolist() == x[rows].tolist()
            assert y.flags.c_contiguous
    assert SamplingBatch.greedy(5).select([0, 4]) is SamplingBatch.greedy(2)


def test_a_batch_at_other_positions_is_the_same_in_everything_else() -> None:
    batch = built()
    moved = batch.at([90 + row for row in range(len(batch))])
    assert moved.positions is not None
    assert moved.positions.dtype == np.uint32
    assert moved.positions.tolist() == [90 + row for row in range(len(batch))]
    assert all(getattr(moved, name) is getattr(batch, name) for name in ARRAYS if name != "positions")


def test_a_sequence_alone_gets_what_is_built_from_nothing_whoever_came_before_it() -> None:
    last = LastBatches()
    warm, cold = SamplingParams(temperature=0.8, logit_bias={3: 1.0}), SamplingParams(temperature=0.5)
    asked = [(warm, 7, 0, [4, 5]), (warm, 7, 0, [9, 9]), (warm, 8, 0, [5, 6]), (warm, 8, 1, [5, 6]), (warm, 8, 1, [7])]
    for params, seed, index, positions in [*asked, (cold, 8, 1, [8]), (cold, 8, 1, [9])]:
        rows = SamplingRows()
        rows.add(params, seed, index, positions)
        expected, found = rows.build(), last.of(params, seed, index, positions)
        assert len(found) == len(positions)
        for name in ARRAYS:
            x, y = getattr(expected, name), getattr(found, name)
            if isinstance(x, Ragged):
                assert lists(y, len(positions)) == lists(x, len(positions))
            else:
                assert (x is y is None) or (x.dtype == y.dtype and x.tolist() == y.tolist())
