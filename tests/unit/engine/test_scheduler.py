"""The scheduler: order, chunks, preemption, and the promise that nobody starves, against a plain model."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from outpace.drafters.ngram import NGram
from outpace.engine.decode import Decoder
from outpace.engine.sequence import SequenceState
from outpace.errors import CacheError, ContextError
from outpace.runner import Runner
from tests.decoding import decode, request, sequence_of, tiny_ops, tiny_runner

PROMPT = [5, 6, 7, 8, 9]
VOCAB = 97


def alone(prompt: list[int], **options: Any) -> list[int]:
    (sequence,) = decode(tiny_runner(ops=tiny_ops()), [prompt], **options)
    return sequence.output.tokens


def add(
    loop: Decoder, prompt: list[int], n: int = 1, drafter: Any = None, reuses_cache: bool = True, **options: Any
) -> list[SequenceState]:
    asked = [request(prompt, sample_index=i, **options) for i in range(n)]
    group = [sequence_of(each, loop.runner, drafter=drafter, reuses_cache=reuses_cache) for each in asked]
    loop.add(group)
    return group


def run(loop: Decoder) -> None:
    for _ in loop.run():
        loop.scheduler.check()


def test_a_request_that_can_never_fit_is_refused_with_both_counts() -> None:
    loop = Decoder(tiny_runner(capacity=9))
    with pytest.raises(CacheError, match="may need 18 cache blocks of 32 tokens, but the cache holds 9"):
        add(loop, PROMPT, max_new_tokens=512)


def test_a_prompt_beyond_the_context_is_refused_with_both_counts() -> None:
    loop = Decoder(tiny_runner(context=64))
    with pytest.raises(ContextError, match="the prompt has 64 tokens, but the context holds 64"):
        add(loop, [1] * 64)


def test_blocks_are_taken_as_they_are_needed_and_not_for_the_longest_output() -> None:
    loop = Decoder(tiny_runner(capacity=9))
    for i in range(4):  # each may grow to 2 blocks, and needs 1 now
        add(loop, PROMPT[i:], max_new_tokens=50)
    loop.step()
    assert len(loop.scheduler.running) == 4
    assert loop.runner.cache.num_available == 5


@pytest.mark.parametrize("share_prefixes", [True, False])
@pytest.mark.parametrize("drafter", [None, NGram(min_ngram=1)])
def test_preemption_changes_no_token_and_spares_the_oldest(share_prefixes: bool, drafter: Any) -> None:
    options: dict[str, Any] = {"max_new_tokens": 150, "temperature": 0.7, "seed": 3}
    runner = tiny_runner(ops=tiny_ops(), capacity=8, share_prefixes=share_prefixes)  # one sequence alone needs 6
    loop = Decoder(runner)
    prompts = [[(7 * i + j) % VOCAB for j in range(10)] for i in range(5)]
    group = [add(loop, prompt, drafter=drafter, **options)[0] for prompt in prompts]
    run(loop)
    assert [g.output.tokens for g in group] == [alone(prompt, **options) for prompt in prompts]
    assert group[0].stats.preemptions == 0
    assert all(g.stats.preemptions for g in group[2:])
    assert sum(g.stats.preemptions for g in group) >= 5
    assert runner.cache.num_available == runner.cache.capacity


@pytest.mark.parametrize("drafter", [None, NGram(min_ngram=1)])
def test_preemption_changes_no_token_even_if_every_request_is_preempted_at_least_twice(drafter: Any) -> None:
    options: dict[str, Any] = {"max_new_tokens": 60, "temperature": 0.7, "seed": 3}
    loop = Decoder(tiny_runner(ops=tiny_ops(), capacity=8))
    prompts = [[(7 * i + j) % VOCAB for j in range(30)] for i in range(4)]
    group = [add(loop, prompt, drafter=drafter, **options)[0] for prompt in prompts]
    for number, _ in enumerate(loop.run()):
        loop.scheduler.check()
        if number % 9 == 8:  # as if an older request had needed all blocks
            for sequence in reversed(loop.scheduler.running.copy()):
                loop.scheduler.preempt(sequence)
            loop.scheduler.check()
    assert [g.output.tokens for g in group] == [alone(prompt, **options) for prompt in prompts]
    assert min(g.stats.preemptions for g in group) >= 2


def test_a_pool_for_one_preempts_the_younger_again_and_again_and_changes_no_token() -> None:
    """Each is preempted once by every older one that grows; the oldest never is, and the second only by the oldest."""
    options: dict[str, Any] = {"max_new_tokens": 100, "temperature": 0.7, "seed": 3}
    runner = tiny_runner(ops=tiny_ops(), capacity=6)  # one sequence alone needs 6, with the copy of a shared block
    loop = Decoder(runner)
    prompts = [[(7 * i + j) % VOCAB for j in range(31)] for i in range(5)]
    group = [add(loop, prompt, **options)[0] for prompt in prompts]
    run(loop)
    assert [g.output.tokens for g in group] == [alone(prompt, **options) for prompt in prompts]
    assert group[0].stats.preemptions == 0
    assert min(g.stats.preemptions for g in group[2:]) >= 2
    assert runner.cache.num_available == runner.cache.capacity


def test_samples_of_one_prompt_are_preempted_like_others() -> None:
    options: dict[str, Any] = {"max_new_tokens": 120, "temperature": 1.0, "seed": 1}
    loop = Decoder(tiny_runner(ops=tiny_ops(), capacity=8))
    group = add(loop, PROMPT * 5, n=4, **options)
    run(loop)
    assert sum(g.stats.preemptions for g in group) >= 2
    for i, g in enumerate(group):
        assert g.output.tokens == alone(PROMPT * 5, sample_index=i, **options)


@pytest.mark.parametrize("options", [{"prompt": [3]}, {"prompt": PROMPT, "reuses_cache": False}])
def test_samples_run_side_by_side_where_there_is_no_prefill_to_share(options: dict[str, Any]) -> None:
    loop = Decoder(tiny_runner(ops=tiny_ops()))
    group = add(loop, n=3, temperature=1.0, max_new_tokens=9, **options)
    for _ in range(9):
        loop.step()
    assert all(g.done for g in group)
    for i, g in enumerate(group):
        assert g.output.tokens == alone(options["prompt"], temperature=1.0, max_new_tokens=9, sample_index=i)


def test_a_long_prompt_does_not_hold_up_those_who_decode() -> None:
    loop = Decoder(tiny_runner(ops=tiny_ops()), token_budget=32)
    (short,) = add(loop, PROMPT, max_new_tokens=60)
    loop.step()
    (long,) = add(loop, [i % VOCAB for i in range(600)], max_new_tokens=4)
    for count in range(2, 19):  # 600 tokens, 31 beside the decoding row in a pass
        loop.step()
        assert len(short.output.tokens) == count
        assert not long.output.tokens
    run(loop)
    assert long.output.tokens == alone([i % VOCAB for i in range(600)], max_new_tokens=4)


def test_a_prompt_advances_though_decoding_fills_the_budget() -> None:
    loop = Decoder(tiny_runner(ops=tiny_ops()), token_budget=2)
    (first,) = add(loop, [1] * 20, max_new_tokens=2)
    others = [add(loop, [i], max_new_tokens=30)[0] for i in range(2, 6)]
    for _ in range(21):
        loop.step()
    assert first.done, "the oldest computes at least one token in every pass"
    run(loop)
    assert all(len(g.output.tokens) == 30 for g in others)


def test_when_the_leader_ends_the_next_sample_takes_its_place_and_its_prefill() -> None:
    loop = Decoder(tiny_runner(ops=tiny_ops(), share_prefixes=False), token_budget=30)
    group = add(loop, [1] * 100, n=3, temperature=1.0, max_new_tokens=5)
    (later,) = add(loop, PROMPT, max_new_tokens=5)
    loop.step()
    loop.cancel(group[0])
    assert group[1].table is not None
    assert group[1].table.length == 30
    run(loop)
    assert [g.finish_reason for g in (*group, later)] == ["cancelled", "length", "length", "length"]
    assert group[2].output.tokens == alone([1] * 100, temperature=1.0, max_new_tokens=5, sample_index=2)


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come and go in any order over a small pool; a plain model knows what each must write, and how long it
    may take: from its arrival on, a sequence ends within as many passes as it and all older ones have tokens left.
    """

    texts: dict[tuple[Any, ...], list[int]] = {}  # noqa: RUF012 (what single runs wrote, kept over all examples)

    def __init__(self) -> None:
        super().__init__()
        self.runner: Runner = tiny_runner(ops=tiny_ops(), capacity=10)
        self.loop = Decoder(self.runner, token_budget=24, max_running=5)
        self.drafter = NGram(min_ngram=1)
        self.alive: dict[int, tuple[SequenceState, list[int], int]] = {}  # id -> (sequence, its text, passes left)

    def expected(self, prompt: list[int], length: int, index: int) -> list[int]:
        key = (tuple(prompt), length, index)
        if key not in self.texts:
            self.texts[key] = alone(prompt, max_new_tokens=length, sample_index=index, temperature=0.8)
        return self.texts[key]

    @rule(
        start=st.integers(0, 5),
        size=st.sampled_from([1, 20, 31, 32, 33, 64, 90]),
        length=st.sampled_from([1, 7, 40, 90]),
        n=st.integers(1, 3),
        drafts=st.booleans(),
    )
    def submit(self, start: int, size: int, length: int, n: int, drafts: bool) -> None:
        prompt = [(start * i + i) % VOCAB for i in range(size)]
        group = add(self.loop, prompt, n, self.drafter if drafts else None, max_new_tokens=length, temperature=0.8)
        for index, sequence in enumerate(group):
            older = sum(len(s.tokens) + s.num_left for s, _, _ in self.alive.values())
            passes = older + len(prompt) + length + 1
            self.alive[sequence.id] = (sequence, self.expected(prompt, length, index), passes)

    @rule(count=st.integers(1, 30))
    @precondition(lambda self: self.alive)
    def step(self, count: int) -> None:
        for _ in range(count):
            if self.loop.scheduler.is_idle:
                return
            self.loop.step()
            self.loop.scheduler.check()
            for number, (sequence, text, left) in list(self.alive.items()):
                assert sequence.output.tokens == text[: len(sequence.output.tokens)]
                if sequence.done:
                    assert (sequence.finish_reason, sequence.output.tokens) == ("length", text)
                    assert not sequence.stats.warnings
                    del self.alive[number]
                else:
                    assert left > 0, "nobody starves"
                    self.alive[number] = (sequence, text, left - 1)

    @rule(data=st.data())
    @precondition(lambda self: self.alive)
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.alive)))
        sequence, text, _ = self.alive.pop(number)
        self.loop.cancel(sequence)
        assert sequence.done
        assert sequence.output.tokens == text[: len(sequence.output.tokens)]

    @invariant()
    def holds(self) -> None:
        self.loop.scheduler.check()
        if self.loop.scheduler.is_idle:
            assert self.runner.cache.num_available == self.runner.cache.capacity

    def teardown(self) -> None:
        run(self.loop)
        for sequence, text, _ in self.alive.values():
            assert sequence.output.tokens == text


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.slow
class TestSchedulerLonger(SchedulerMachine.TestCase):
    settings = settings(
        max_examples=300, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
    )
