"""The end of a process: nothing is printed, nothing is left out, whatever threads were doing."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("outpace.ops.native._native")

USED_IN_A_THREAD = """
import sys, threading
import numpy as np
from outpace.ops.native import NativeOps, _native
from outpace.ops.sampling import SamplingRows
from outpace.types import KVSpec, SamplingParams, Segment
from tests.tiny import raw_tensor

ops = NativeOps(threads=2)
weight = ops.pack(raw_tensor("w", np.ones((300, 200), np.float32)))
kv = ops.kv_alloc(KVSpec(1, 1, 16), 4)
plan = ops.plan([Segment([0], 0, [1, 2, 3])], 32)
rows = SamplingRows()
rows.add(SamplingParams(temperature=1.0, presence_penalty=1.0, logit_bias={1: 1.0}), 1, 0, [5], output=[2])
batch = rows.build()
results, begun = [], threading.Event()

def work(times):
    for _ in range(times):
        results[:] = [ops.linear(ops.embed(weight, plan), weight)]
        ops.sample(ops.select(results[0], [0]), batch)
        begun.set()
"""
ENDS = {
    "a thread that has ended": "t = threading.Thread(target=work, args=(3,)); t.start(); t.join(); sys.exit(5)",
    "a thread that goes on a little": "threading.Thread(target=work, args=(300,)).start(); begun.wait(); sys.exit(5)",
}
DAEMON = "threading.Thread(target=work, args=(10**9,), daemon=True).start(); begun.wait(); sys.exit(5)"


def ends_with(script: str) -> tuple[int, str]:
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{USED_IN_A_THREAD}{script}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_every_object_is_given_back_where_no_thread_keeps_it(end: str) -> None:
    assert ends_with(f"_native.warn_of_leaks(True); {end}") == (5, "")


def test_a_process_that_ends_while_a_daemon_thread_computes_prints_nothing_and_keeps_its_status() -> None:
    for _ in range(3):
        assert ends_with(DAEMON) == (5, "")


def test_what_a_daemon_thread_keeps_would_be_called_a_leak() -> None:
    """The control: the test above could fail."""
    status, output = ends_with(f"_native.warn_of_leaks(True); {DAEMON}")
    assert status == 5
    assert "nanobind: leaked" in output
