"""What only the reference promises; everything else is in `tests/contracts`."""

import numpy as np
import pytest

from outpace.errors import UsageError, WeightsError
from outpace.ops.reference import ReferenceOps
from outpace.ops.reference.product import multiply
from outpace.ops.reference.rope import RopeTable
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


@pytest.mark.parametrize("width", [33, 576, 8192, 8193, 20_000])
def test_a_product_s_row_has_the_same_bits_at_any_address(width: int) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((21, width), np.float32)
    x = rng.standard_normal((70, width), np.float32)
    together = multiply(x, weight, None, 1)
    memory = np.empty(width + 20, np.float32)
    for row, offset in ((0, 0), (1, 1), (69, 3), (64, 13)):
        memory[offset : offset + width] = x[row]
        alone = multiply(memory[None, offset : offset + width], weight, None, 1)
        assert alone.tobytes() == together[row].tobytes()
    np.testing.assert_allclose(together, x.astype(np.float64) @ weight.T, atol=1e-3 * np.sqrt(width))


def test_a_rotary_table_does_not_depend_on_the_order_of_its_making() -> None:
    inv_freq = 10_000.0 ** (-np.arange(16) / 16)
    x = np.random.default_rng(0).standard_normal((2, 3, 32), np.float32)
    straight, stepwise = (RopeTable(inv_freq, 1.0, 4096, np.float32) for _ in range(2))
    for position in (3, 1023, 1024, 2500):
        stepwise.rotate(x, np.array([0, position]))
    far = np.array([4095, 3000])
    assert straight.rotate(x, far).tobytes() == stepwise.rotate(x, far).tobytes()


def test_a_position_past_the_context_is_our_own_bug() -> None:
    table = RopeTable(np.ones(2), 1.0, 10, np.float32)
    with pytest.raises(AssertionError, match="past the context"):
        table.rotate(np.zeros((1, 1, 4), np.float32), np.array([10]))


def test_reading_a_freed_block_is_our_own_bug() -> None:
    ops = ReferenceOps()
    model = tiny_model(ops)
    with pytest.raises(AssertionError, match="freed"):
        model.forward(ops.plan([Segment((-1, 0), 40, [1])], 32), ops.kv_alloc(model.spec("f32"), 2))
