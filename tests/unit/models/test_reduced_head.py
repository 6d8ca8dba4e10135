from __future__ import annotations

from array import array
from typing import Any

import numpy as np
import pytest

from outpace.errors import WeightsError
from outpace.models.reduced_head import ReducedHead, read_head, rows_of
from outpace.ops.formats import dequantise
from outpace.weights.trained import Entries
from tests.implementations import MAKERS
from tests.tiny import raw_tensor


def test_rows_of_a_stored_matrix_are_picked_in_any_format() -> None:
    x = np.random.default_rng(0).standard_normal((6, 64), np.float32)
    for format in ("F32", "Q8_0"):
        tensor = raw_tensor("head", x, format)
        whole = dequantise(tensor)
        for rows in ([4, 0, 4], range(1, 3)):
            picked = rows_of(tensor, rows)
            assert picked.shape == (len(rows), 64)
            assert np.array_equal(dequantise(picked), whole[list(rows)])


@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
def test_a_row_says_the_same_among_the_fixed_ones_and_among_the_others(make: Any) -> None:
    ops = make(1)
    x = np.random.default_rng(0).standard_normal((6, 64), np.float32)
    head = ReducedHead.of(ops, raw_tensor("head", x), 4)
    h = ops.array(np.random.default_rng(1).standard_normal((3, 64), np.float32))
    fixed = ops.numpy(ops.linear(h, head.fixed))
    assert fixed.shape == (3, 4)
    assert np.array_equal(ops.numpy(ops.linear(h, head.pack([2, 5])))[:, 0], fixed[:, 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_tokens": [1, 97]}, r"head_tokens must be different ids in \[0, 97\)"),
        ({"head_tokens": [1, 1]}, "head_tokens must be different"),
        ({"head_tokens": array("I")}, "head_tokens must be different"),
        ({"num_fixed": 0}, r"num_fixed must be in \[1, 3\], is 0"),
        ({"num_fixed": 4}, r"num_fixed must be in \[1, 3\], is 4"),
    ],
)
def test_a_head_must_name_a_token_for_each_row(change: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"num_fixed": 2, "head_tokens": array("I", [5, 0, 96])}
    assert read_head(Entries(values, "a file"), 97) == (2, (5, 0, 96))
    with pytest.raises(WeightsError, match=message):
        read_head(Entries(values | change, "a file"), 97)
