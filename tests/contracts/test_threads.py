"""The contract of threads, for every implementation of the ops: which are refused, and what a fork leaves."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from outpace.errors import UsageError
from tests.implementations import MAKERS


@pytest.fixture(params=list(MAKERS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run(script: str) -> str:
    """Run a script in a process of its own and return what it prints."""
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{script}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("threads", [0, -1, 1025, 2**31, 2**64, np.int64(1025)])
def test_a_number_of_threads_out_of_range_is_refused(name: str, threads: int) -> None:
    with pytest.raises(UsageError, match=r"threads must be in \[1, 1024\], got"):
        MAKERS[name](threads)


@pytest.mark.parametrize("threads", ["2", 1.5, True, 2.0])
def test_what_is_no_number_of_threads_is_refused(name: str, threads: Any) -> None:
    with pytest.raises(UsageError, match="threads must be a whole number, got"):
        MAKERS[name](threads)


def test_a_number_of_threads_is_kept_as_an_int(name: str) -> None:
    assert type(MAKERS[name](np.int64(2)).threads) is int  # type: ignore[arg-type]


def test_threads_that_the_system_does_not_start_are_refused_and_fewer_still_work(name: str) -> None:
    """Memory runs out: a thread reserves megabytes for its stack."""
    script = f"""
import resource
from outpace.errors import UsageError
from tests.implementations import MAKERS
import numpy as np
make = MAKERS[{name!r}]
in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + (300 << 20), resource.RLIM_INFINITY))
try:
    make(1024)
except UsageError as error:
    print(error)
print(make(2).read_bandwidth(1 << 20, 1)[0] > 0)
"""
    refused, works = run(script).splitlines()
    assert refused.startswith("1024 threads cannot be started here, only ")
    assert "give fewer threads" in refused
    assert works == "True"


def test_a_child_computes_the_same_when_it_was_forked_while_other_threads_computed(name: str) -> None:
    script = f"""
import os, threading, warnings
import numpy as np
from outpace.ops.sampling import SamplingRows
from outpace.types import SamplingParams
from tests.implementations import MAKERS
from tests.tiny import raw_tensor

warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of any fork beside threads
ops = MAKERS[{name!r}](3)
rng = np.random.default_rng(0)
weight = ops.pack(raw_tensor("w", rng.standard_normal((600, 400), np.float32)))
x = ops.array(rng.standard_normal((70, 400), np.float32))
rows = SamplingRows()
rows.add(SamplingParams(temperature=1.0), 1, 0, range(70))
batch = rows.build()

def compute():
    logits = ops.linear(x, weight)
    return ops.numpy(logits).tobytes(), ops.sample(logits, batch).tobytes()

expected, done = compute(), threading.Event()
begun = [threading.Event() for _ in range(2)]

def work(mark):
    while not done.is_set():
        assert compute() == expected
        mark.set()

threads = [threading.Thread(target=work, args=(mark,)) for mark in begun]
for thread, mark in zip(threads, begun):
    thread.start()
    mark.wait()
for _ in range(10):
    child = os.fork()
    if child == 0:
        os._exit(7 if compute() == expected and compute() == expected else 1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
done.set()
for thread in threads:
    thread.join()
print(compute() == expected)
"""
    assert run(script).split() == ["7"] * 10 + ["True"]


def test_a_child_that_was_forked_can_end_as_any_process_does(name: str) -> None:
    script = f"""
import os, sys, warnings
from tests.implementations import MAKERS
warnings.simplefilter("ignore", DeprecationWarning)
ops = MAKERS[{name!r}](3)
child = os.fork()
if child == 0:
    ops.read_bandwidth(1 << 20, 1)
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run(script).split() == ["7"]
