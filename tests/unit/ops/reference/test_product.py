from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from outpace.ops.reference.product import multiply


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


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_shares_of_the_weight_make_the_product_that_one_thread_makes(threads: int) -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((50, 700), np.float32)
    x = rng.standard_normal((60, 700), np.float32)  # enough for eight shares
    with ThreadPoolExecutor(threads) as pool:
        assert multiply(x, weight, pool, threads).tobytes() == multiply(x, weight, None, 1).tobytes()


def test_a_product_too_small_for_two_threads_stays_with_the_caller() -> None:
    class Refusing(ThreadPoolExecutor):
        def map(self, *_: object, **__: object) -> None:  # type: ignore[override]
            raise AssertionError("a thread was asked")

    x, weight = np.eye(3, dtype=np.float32), np.arange(12, dtype=np.float32).reshape(4, 3)
    with Refusing(2) as pool:
        assert (multiply(x, weight, pool, 2) == weight.T).all()


def test_rows_of_another_length_than_the_weights_are_our_own_bug() -> None:
    with pytest.raises(AssertionError, match=r"rows of 3 numbers met a weight of shape \(4, 5\)"):
        multiply(np.zeros((2, 3)), np.zeros((4, 5)), None, 1)
