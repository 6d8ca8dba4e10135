"""What only the reference promises; what every implementation does is in `tests/contracts`."""

from __future__ import annotations

import numpy as np
import pytest

from outpace.errors import UsageError, WeightsError
from outpace.ops.reference import ReferenceOps
from outpace.types import Segment
from tests.tiny import raw_tensor, tiny_model


def test_a_number_of_threads_below_one_is_refused() -> None:
    with pytest.raises(UsageError, match="threads"):
        ReferenceOps(threads=0)


def test_float64_shows_what_float32_rounds() -> None:
    tokens = list(range(60))
    logits = []
    for dtype in (np.float32, np.float64):
        ops = ReferenceOps(dtype)
        model = tiny_model(ops)
        plan = ops.plan([Segment((0, 1), 0, tokens, num_scored=60)], 32)
        logits.append(model.forward(plan, ops.kv_alloc(model.spec("f32"), 2))[0])
    assert 0 < np.abs(logits[0] - logits[1]).max() < 1e-4


def test_a_matrix_is_not_a_vector_nor_the_other_way_round() -> None:
    ops = ReferenceOps()
    with pytest.raises(WeightsError, match=r"'w' must be a matrix.*\(4,\)"):
        ops.pack(raw_tensor("w", np.zeros(4, np.float32)))
    with pytest.raises(WeightsError, match=r"'w' must be a vector.*\(2, 4\)"):
        ops.vector(raw_tensor("w", np.zeros((2, 4), np.float32)))
