"""The engine's thread: calls that meet in it, how they end, and what a fork, an exit or a failure leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import outpace
from outpace.api import LanguageModel
from outpace.errors import EngineError, UsageError
from outpace.runner import Pass
from tests.decoding import assert_all_free, tiny_ops

PROMPTS = ["the cat", "a dog", "def f(x)", "1, 2, 3", "the cat sat on the mat, the cat sat on"]
SECONDS = 60  # after which a test calls a wait a hang
SMALL = 224  # tokens of a cache that has room for one or two texts


@pytest.fixture
def lm(folder: Path) -> LanguageModel:
    return outpace.load(folder, ops=tiny_ops())


def in_threads(count: int, work: Any) -> None:
    """Run work(i) in so many threads at once; raise what one of them raised."""
    errors: list[BaseException] = []

    def guarded(i: int) -> None:
        try:
            work(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive(), "a call hangs"
    if errors:
        raise errors[0]


class Gate:
    """A logits processor that holds the engine's thread until it is told to go on."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()

    def __call__(self, tokens: Sequence[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        self.entered.set()
        assert self.opened.wait(SECONDS)
        return logits


def test_calls_of_many_threads_share_passes_and_do_not_mix(lm: LanguageModel) -> None:
    options: dict[str, Any] = {"max_new_tokens": 40, "ignore_eos": True, "strategy": "none"}
    expected = [lm.generate(prompt, **options).tokens for prompt in PROMPTS]
    gate = Gate()
    with lm.stream("hold the door", logits_processors=[gate], max_new_tokens=1) as held:
        assert gate.entered.wait(SECONDS)  # from here on nothing is taken in
        streams = [lm.stream(prompt, trace=True, **options) for prompt in PROMPTS]
        gate.opened.set()
        in_threads(len(streams), lambda i: list(streams[i]))
        list(held)
    results = [stream.result for stream in streams]
    assert [result.tokens for result in results if result] == expected
    assert max(step.batch for result in results if result for step in result.trace.steps) == len(PROMPTS)
    assert_all_free(lm.runner)


class Failing:
    """Fail after some tokens, as a constraint, a logits processor or a drafter."""

    name = "failing"
    taps: tuple[int, ...] = ()

    def __init__(self, after: int) -> None:
        self.after = after

    def mask(self, path: Sequence[int]) -> NDArray[np.uint32]:
        if len(path) >= self.after:
            raise RuntimeError("this constraint is broken")
        return np.full(10, 0xFFFFFFFF, np.uint32)

    def __call__(self, tokens: Sequence[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        if len(tokens) >= self.after + 8:
            raise RuntimeError("this processor is broken")
        return logits

    def propose(self, sequences: Sequence[Any], budgets: Sequence[int]) -> Any:
        raise RuntimeError("this drafter is broken")

    def observe(self, steps: Sequence[Any], passed: Pass) -> None:
        raise RuntimeError("this drafter is broken")

    def forget(self, request: int) -> None:
        raise RuntimeError("this drafter is broken")


def _stress(lm: LanguageModel, num_threads: int, per_thread: int) -> int:
    """Random calls from many threads, some cancelled, some failing; every text that survives equals its single run.

    Returns how often one of their sequences was preempted.
    """
    cases = [
        {"max_new_tokens": length, "temperature": temperature, "seed": seed, "strategy": strategy, "ignore_eos": True}
        for length in (3, 60, 130)
        for temperature in (0.0, 0.9)
        for seed in (1, 2)
        for strategy in ("none", "ngram", "suffix", "auto")
    ]
    for i, options in enumerate(cases):  # each option meets each strategy in some case
        if options["temperature"]:
            options |= ({}, {"top_p": 0.9}, {"typical_p": 0.8, "logprobs": 2}, {"top_n_sigma": 1.5})[(i + i // 4) % 4]
        options |= ({}, {"repetition_penalty": 1.2}, {"logit_bias": {5: -2.0}})[i % 3]
    texts: dict[tuple[int, int], list[int]] = {}
    preemptions: list[int] = []
    lock = threading.Lock()

    def text(p: int, c: int) -> list[int]:
        with lock:
            if (p, c) not in texts:
                alone = outpace.load(lm.path, ops=lm.runner.ops)
                texts[p, c] = alone.generate(PROMPTS[p], **{**cases[c], "strategy": "none"}).tokens
            return texts[p, c]

    def work(i: int) -> None:
        rng = np.random.default_rng(i)
        for _ in range(per_thread):
            p, c, kind = int(rng.integers(len(PROMPTS))), int(rng.integers(len(cases))), int(rng.integers(8))
            options, expected = cases[c], text(p, c)
            if kind == 0:
                with lm.stream(PROMPTS[p], **options) as stream:
                    seen = [token for _, chunk in zip(range(3), stream, strict=False) for token in chunk.tokens]
                assert seen == expected[: len(seen)]
            elif kind == 1:
                with pytest.raises(RuntimeError, match="this constraint is broken"):
                    lm.generate(PROMPTS[p], **{**options, "constraint": Failing(2)})
            elif kind == 2:
                processors = [Failing(0)]
                with pytest.raises(RuntimeError, match="this processor is broken"):
                    lm.generate(PROMPTS[4], **{**options, "logits_processors": processors})
            elif kind == 3:
                result = lm.generate(PROMPTS[p], **{**options, "strategy": Failing(0)})
                assert result.tokens == expected
                assert "this drafter is broken" in result.stats.warnings[0]
            elif kind == 4:
                results = lm.generate([PROMPTS[p]] * 2, **options)
                assert [result.tokens for result in results] == [expected] * 2
                preemptions.extend(result.stats.preemptions for result in results)
            elif kind == 5:
                with lm.stream(PROMPTS[p], **options) as stream:
                    assert [token for chunk in stream for token in chunk.tokens] == expected
            else:
                result = lm.generate(PROMPTS[p], **options)
                assert result.tokens == expected
                assert not result.stats.warnings
                preemptions.append(result.stats.preemptions)

    in_threads(num_threads, work)
    return sum(preemptions)


def test_random_calls_of_many_threads_over_a_small_pool(folder: Path) -> None:
    lm = outpace.load(folder, ops=tiny_ops(), cache_tokens=SMALL)
    _stress(lm, 8, 6)
    assert_all_free(lm.runner)
    assert lm.engine._thread is None


@pytest.mark.slow
def test_two_hundred_random_calls_of_sixteen_threads_over_a_small_pool(folder: Path) -> None:
    lm = outpace.load(folder, ops=tiny_ops(), cache_tokens=SMALL)
    assert _stress(lm, 16, 13) > 0, "the pool is small"
    assert_all_free(lm.runner)
    assert lm.engine._thread is None


def test_a_failure_of_a_pass_ends_every_request_with_its_cause_and_the_next_call_works(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = lm.generate("the cat", max_new_tokens=20, ignore_eos=True).tokens
    forward, count = lm.runner.forward, iter(range(1000))

    def breaks(*args: Any, **named: Any) -> Pass:
        if next(count) == 6:
            raise MemoryError("no memory left")
        return forward(*args, **named)

    monkeypatch.setattr(lm.runner, "forward", breaks)
    errors: list[EngineError] = []

    def call(i: int) -> None:
        with pytest.raises(EngineError, match="MemoryError: no memory left") as caught:
            lm.generate(PROMPTS[i], max_new_tokens=200, ignore_eos=True)
        assert isinstance(caught.value.__cause__, MemoryError)
        errors.append(caught.value)

    with lm.stream("hold the door", max_new_tokens=2000, ignore_eos=True) as stream:
        next(stream)
        with pytest.raises(EngineError, match="no memory left"):
            list(stream)
    count = iter(range(1000))
    in_threads(1, call)
    assert_all_free(lm.runner)
    monkeypatch.undo()
    assert lm.generate("the cat", max_new_tokens=20, ignore_eos=True).tokens == expected


def test_a_processor_that_calls_its_own_model_is_refused_and_not_a_deadlock(lm: LanguageModel) -> None:
    def calls(tokens: Sequence[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        lm.generate("hi", max_new_tokens=1)
        return logits

    with pytest.raises(UsageError, match="cannot call the model that calls it"):
        lm.generate("the cat", logits_processors=[calls], max_new_tokens=4)
    assert_all_free(lm.runner)


def test_a_closed_model_cancels_what_runs_and_refuses_more(lm: LanguageModel) -> None:
    stream = lm.stream("the cat", max_new_tokens=2000, ignore_eos=True)
    next(stream)
    lm.close()
    list(stream)
    assert stream.result is not None
    assert stream.result.finish_reason == "cancelled"
    with pytest.raises(EngineError, match="takes no more work: it was closed"):
        lm.generate("the cat")
    assert_all_free(lm.runner)


def _run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env=environment, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip


SCRIPT = """
import os, sys, threading
import outpace
from tests.decoding import tiny_ops
lm = outpace.load(sys.argv[1], ops=tiny_ops())
options = dict(max_new_tokens=20, ignore_eos=True)
"""


def test_a_fork_while_nothing_runs_gives_a_working_model(folder: Path) -> None:
    code = """
expected = lm.generate("the cat", **options).tokens
child = os.fork()
assert lm.generate("the cat", **options).tokens == expected
if child == 0:
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = _run(SCRIPT + code, folder)
    assert (done.stdout, done.stderr) == ("7\n", "")


def test_a_fork_while_it_generates_gives_a_clear_error_and_never_a_hang(folder: Path) -> None:
    code = """
stream = lm.stream("the cat", max_new_tokens=2000, ignore_eos=True)
next(stream)
child = os.fork()
if child == 0:
    for call in (lambda: lm.generate("a dog", **options), lambda: list(stream), lambda: list(lm.stream("hi"))):
        try:
            call()
        except outpace.EngineError as error:
            assert "forked while it was generating; load it again" in str(error)
        else:
            os._exit(1)
    again = outpace.load(sys.argv[1], ops=tiny_ops())
    os._exit(7 if len(again.generate("a dog", **options).tokens) == 20 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
stream.close()
"""
    done = _run(SCRIPT + code, folder)
    assert (done.stdout, done.stderr) == ("7\n", "")


@pytest.mark.parametrize(
    "end", ["", "sys.exit(0)", "lm.generate('a dog', **options); sys.exit(0)", "import gc; del stream; gc.collect()"]
)
def test_a_process_ends_quietly_though_a_stream_is_open(folder: Path, end: str) -> None:
    code = """
stream = lm.stream("the cat", max_new_tokens=1500, ignore_eos=True)
next(stream)
"""
    done = _run(SCRIPT + code + end, folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_ctrl_c_ends_a_call_and_frees_its_blocks(folder: Path) -> None:
    code = """
import signal
def interrupt(tokens, logits):
    if len(tokens) == 20:
        os.kill(os.getpid(), signal.SIGINT)
    return logits
try:
    lm.generate("the cat", logits_processors=[interrupt], max_new_tokens=1500, ignore_eos=True)
except KeyboardInterrupt:
    lm.runner.cache.check()
    print(lm.runner.cache.num_available == lm.runner.cache.capacity, len(lm.generate("a dog", **options).tokens))
"""
    done = _run(SCRIPT + code, folder)
    assert (done.stdout, done.stderr) == ("True 20\n", "")
