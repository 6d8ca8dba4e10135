"""Threads: one pool for all, alive after a fork, in a floating-point mode of its own."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.tiny import raw_tensor

pytest.importorskip("outpace.ops.native._native")
from outpace.ops.native import NativeOps


def product(ops: NativeOps, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    weight = ops.pack(raw_tensor("w", rng.standard_normal((300, 200), np.float32)))
    return ops.numpy(ops.linear(ops.array(rng.standard_normal((70, 200), np.float32)), weight))


def test_two_models_that_compute_at_the_same_time_get_their_own_results() -> None:
    makers = [NativeOps(threads=2), NativeOps(threads=3), NativeOps(threads=1)]
    alone = [product(ops, seed) for seed, ops in enumerate(makers)]
    wrong: list[int] = []

    def work(seed: int) -> None:
        for _ in range(50):
            if not (product(makers[seed], seed) == alone[seed]).all():
                wrong.append(seed)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_computes_with_threads_of_its_own() -> None:
    ops = NativeOps(threads=3)
    expected = product(ops)
    child = os.fork()
    if child == 0:  # no assertion may leave the child
        os._exit(0 if (product(ops) == expected).all() else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert (product(ops) == expected).all()


def test_flush_to_zero_that_another_library_switched_on_changes_no_bit() -> None:
    torch = pytest.importorskip("torch")
    one, three = NativeOps(threads=1), NativeOps(threads=3)
    rng = np.random.default_rng(0)
    raw = raw_tensor("w", rng.standard_normal((300, 200), np.float32))
    small = rng.standard_normal((70, 200), np.float32) * np.float32(1e-39)

    def product_of_small(ops: NativeOps) -> NDArray[np.uint32]:
        return ops.numpy(ops.linear(ops.array(small), ops.pack(raw))).view(np.uint32)

    denormal = product_of_small(one)
    exponents = denormal >> 23 & 255
    assert ((exponents == 0) & (denormal << 1 != 0)).any(), "no denormal numbers: the test could not fail"
    if not torch.set_flush_denormal(True):
        pytest.skip("this CPU cannot flush denormal numbers to zero")
    try:
        assert (product_of_small(one) == denormal).all()
        assert (product_of_small(three) == denormal).all()
        assert torch.tensor(1e-39) * 1.0 == 0, "the mode was not restored"
    finally:
        torch.set_flush_denormal(False)
