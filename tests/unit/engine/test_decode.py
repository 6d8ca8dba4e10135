from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from outpace.drafters.ngram import NGram
from outpace.drafters.prediction import Prediction
from outpace.engine.decode import Decoder
from outpace.engine.verify import EXACT_MATCH, REJECTION_SAMPLING
from outpace.errors import CacheError, ContextError, UsageError
from outpace.ops.reference import ReferenceOps
from outpace.types import Segment
from outpace.types.tree import EMPTY, DraftTree
from tests.decoding import decode, request, sequence_of, tiny_ops, tiny_runner

PROMPT = [5, 6, 7, 8, 9]


def by_hand(prompt: Sequence[int], count: int) -> list[int]:
    """Greedy text by the definition: a full pass over everything for every token, no loop of ours."""
    runner = tiny_runner()
    ops, model = runner.ops, runner.model
    tokens = list(prompt)
    for _ in range(count):
        kv = ops.kv_alloc(model.spec("f32"), 8)
        plan = ops.plan([Segment(list(range(8)), 0, tokens)], 32)
        tokens.append(int(np.argmax(ops.numpy(model.forward(plan, kv)[0])[-1])))
    return tokens[len(prompt) :]


def start(runner: Any, prompts: Sequence[Sequence[int]], drafter: Any = None, n: int = 1, **options: Any) -> Any:
    """A decoder with n samples of every prompt added, and their sequences."""
    loop = Decoder(runner, **options.pop("decoder", {}))
    state = {name: options.pop(name) for name in ("reuses_cache", "record") if name in options}
    sequences = []
    for prompt in prompts:
        group = [
            sequence_of(request(prompt, sample_index=i, **options), runner, drafter=drafter, **state) for i in range(n)
        ]
        loop.add(group)
        sequences += group
    return loop, sequences


class Scripted:
    """Return what a test says."""

    name = "scripted"
    taps = ()

    def __init__(self, *trees: DraftTree) -> None:
        self.trees = trees
        self.budgets: list[int] = []
        self.observed: list[Any] = []
        self.forgotten: list[int] = []

    def propose(self, sequences: Any, budgets: Any) -> Sequence[DraftTree]:
        self.budgets += budgets
        return self.trees

    def observe(self, steps: Any, passed: Any) -> None:
        self.observed += steps

    def forget(self, request: int) -> None:
        self.forgotten.append(request)


def test_plain_decoding_is_the_definition_of_greedy_text() -> None:
    (g,) = decode(tiny_runner(), [PROMPT], max_new_tokens=40, check=True)
    assert g.output.tokens == by_hand(PROMPT, 40)
    assert g.stats.steps == 40


def test_recompute_writes_the_same_text_and_keeps_nothing() -> None:
    runner = tiny_runner()
    loop, (g,) = start(runner, [PROMPT], max_new_tokens=12, reuses_cache=False)
    while not g.done:
        loop.step()
        assert g.table is None or g.table.length == 0
    assert g.output.tokens == by_hand(PROMPT, 12)


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_how_prefill_is_chunked_does_not_change_the_text(chunk: int) -> None:
    prompt = list(range(90))
    (g,) = decode(tiny_runner(), [prompt], max_new_tokens=8, decoder={"token_budget": chunk})
    (whole,) = decode(tiny_runner(), [prompt], max_new_tokens=8)
    assert g.output.tokens == whole.output.tokens


def test_a_known_prefix_is_not_computed_again_and_does_not_change_the_text() -> None:
    runner = tiny_runner()
    prompt = [i % 90 for i in range(200)]
    (first,) = decode(runner, [prompt], max_new_tokens=40)
    (second,) = decode(runner, [prompt], max_new_tokens=40)
    assert (first.stats.cached_tokens, second.stats.cached_tokens) == (0, 192)
    assert second.output.tokens == first.output.tokens


def test_texts_of_different_salts_share_nothing() -> None:
    runner = tiny_runner()
    prompt = [i % 90 for i in range(200)]
    decode(runner, [prompt], max_new_tokens=4, salt=b"a")
    (g,) = decode(runner, [prompt], max_new_tokens=4, salt=b"b")
    assert g.stats.cached_tokens == 0


def test_samples_of_one_prompt_share_its_prefill_and_equal_single_requests() -> None:
    prompt = [i % 90 for i in range(70)]
    options = {"temperature": 1.0, "seed": 3, "max_new_tokens": 32}
    runner = tiny_runner(share_prefixes=False)
    loop, group = start(runner, [prompt], n=3, **options)
    steps = [step for steps in loop.run() for step in steps]
    assert {step.num_pending for step in steps} == {1}  # the 69 tokens before were computed once, for all
    for i, g in enumerate(group):
        (alone,) = decode(tiny_runner(), [prompt], sample_index=i, **options)
        assert g.output.tokens == alone.output.tokens
    assert len({tuple(g.output.tokens) for g in group}) == 3


def test_a_request_that_can_never_fit_is_refused_with_both_counts() -> None:
    with pytest.raises(CacheError, match="may need 18 cache blocks of 32 tokens, but the cache holds 9"):
        start(tiny_runner(capacity=9), [PROMPT], max_new_tokens=512)


def test_a_prompt_beyond_the_context_is_refused_with_both_counts() -> None:
    with pytest.raises(ContextError, match="the prompt has 64 tokens, but the context holds 64"):
        start(tiny_runner(context=64), [[1] * 64])


def test_the_text_ends_where_the_context_does() -> None:
    (g,) = decode(tiny_runner(context=64), [PROMPT], drafter=NGram(), max_new_tokens=100)
    assert (g.finish_reason, len(g.tokens)) == ("context", 64)


def test_the_budget_leaves_room_for_the_bonus() -> None:
    drafter = Scripted(EMPTY)
    decode(tiny_runner(), [PROMPT], drafter=drafter, max_new_tokens=4, max_draft=2)
    assert drafter.budgets == [2, 2, 1, 0]


def test_a_stop_token_ends_the_text_inside_an_accepted_path() -> None:
    text = by_hand(PROMPT, 30)
    last = next(i for i, token in enumerate(text) if i > 4 and token not in text[:i])
    exact = Prediction(text)
    (g,) = decode(tiny_runner(), [PROMPT], drafter=exact, max_new_tokens=30, stop_tokens=frozenset([text[last]]))
    assert g.output.tokens == text[: last + 1]
    assert g.finish_reason == "stop"
    assert len(g.sources) == len(g.output.tokens) == len(g.tokens) - len(PROMPT)


def test_sources_tell_who_drafted_each_token() -> None:
    (g,) = decode(tiny_runner(), [PROMPT], drafter=Prediction(by_hand(PROMPT, 20)), max_new_tokens=20, max_draft=3)
    assert g.sources[-8:] == [("prediction",)] * 3 + [()] + [("prediction",)] * 3 + [()]
    assert g.stats.accepted["prediction"] == sum(1 for names in g.sources if names)


def test_observe_is_told_the_targets_pick_at_every_node() -> None:
    text = by_hand(PROMPT, 3)
    wrong = (text[0] + 1) % 97
    tree = DraftTree((wrong, text[0], text[1]), (-1, -1, 1), (("scripted",),) * 3, (0.5,) * 3)
    drafter = Scripted(tree)
    loop, (g,) = start(tiny_runner(), [PROMPT], drafter, max_new_tokens=9)
    (step,) = loop.step()
    assert drafter.observed == [step]
    assert step.path == [1, 2]
    assert step.tokens == text
    assert [step.target_tokens[0], step.target_tokens[2], step.target_tokens[3]] == text
    (elsewhere,) = decode(tiny_runner(), [[*PROMPT, wrong]], max_new_tokens=1)
    assert step.target_tokens[1] == elsewhere.output.tokens[0]
    assert step.position == len(PROMPT)
    loop.close()
    assert drafter.forgotten == [g.id]


@pytest.mark.parametrize(
    ("trees", "message"),
    [
        ((), "returned 0 drafts for 1 sequences"),
        ((DraftTree.chain([1] * 9, "s"),), "drafted 9 nodes, but the budget was 8"),
        ((DraftTree.chain([97], "s"),), r"outside \[0, 97\)"),
    ],
)
def test_a_drafter_that_breaks_the_protocol_is_named_and_switched_off(trees: Any, message: str) -> None:
    runner = tiny_runner()
    drafter = Scripted(*trees)
    (g,) = decode(runner, [PROMPT], drafter=drafter, max_new_tokens=20, may_warn=True)
    assert g.output.tokens == by_hand(PROMPT, 20)
    (warning,) = g.stats.warnings
    assert re.search(f"scripted.*{message}", warning)
    assert len(drafter.budgets) == 1
    assert drafter.forgotten == [g.id]


class Failing(Scripted):
    """Raise for sequences that begin with a bad token, where a test wants it."""

    def __init__(self, where: str, bad: int) -> None:
        super().__init__()
        self.where, self.bad = where, bad

    def propose(self, sequences: Any, budgets: Any) -> Sequence[DraftTree]:
        if self.where == "propose" and any(s.tokens[0] == self.bad for s in sequences):
            raise RuntimeError("no idea")
        return [DraftTree.chain([1], "scripted") if budget else EMPTY for budget in budgets]

    def observe(self, steps: Any, passed: Any) -> None:
        if self.where == "observe":
            raise RuntimeError("no idea")

    def forget(self, request: int) -> None:
        if self.where == "forget":
            raise RuntimeError("no idea")


@pytest.mark.parametrize("where", ["propose", "observe", "forget"])
def test_a_drafter_that_raises_costs_no_text(where: str) -> None:
    drafter = Failing(where, PROMPT[0])
    bad, good = decode(tiny_runner(), [PROMPT, PROMPT[1:]], drafter=drafter, max_new_tokens=12, may_warn=True)
    assert bad.output.tokens == by_hand(PROMPT, 12)
    assert good.output.tokens == by_hand(PROMPT[1:], 12)
    assert any("RuntimeError: no idea" in warning for warning in bad.stats.warnings)
    assert bool(good.stats.warnings) == (where != "propose")
    assert ("scripted" in good.stats.proposed) or where == "observe"


class Broken:
    """A constraint that raises after a few tokens."""

    def mask(self, path: Sequence[int]) -> NDArray[np.uint32]:
        if len(path) > 3:
            raise RuntimeError("a broken grammar")
        return np.full(4, 0xFFFFFFFF, np.uint32)


def broken_processor(tokens: Sequence[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
    if len(tokens) > len(PROMPT) + 3:
        raise RuntimeError("a broken processor")
    return logits


def nothing_allowed(tokens: Sequence[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.full_like(logits, np.nan) if len(tokens) > len(PROMPT) + 3 else logits


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"constraint": Broken()}, "a broken grammar"),
        ({"logits_processors": (broken_processor,)}, "a broken processor"),
        ({"logits_processors": (nothing_allowed,)}, "NaN|no number"),
        ({"constraint": Broken(), "verifier": REJECTION_SAMPLING, "temperature": 1.0}, "a broken grammar"),
    ],
)
def test_what_a_request_brings_along_fails_it_alone(options: dict[str, Any], message: str) -> None:
    runner = tiny_runner(ops=tiny_ops())
    alone = decode(runner, [PROMPT[1:], PROMPT[2:]], max_new_tokens=12, temperature=0.5, seed=4)
    loop = Decoder(runner)
    verifier = options.pop("verifier", EXACT_MATCH)
    bad = sequence_of(request(PROMPT, max_new_tokens=12, **options), runner, verifier=verifier)
    good = [
        sequence_of(request(prompt, max_new_tokens=12, temperature=0.5, seed=4), runner, drafter=NGram(min_ngram=1))
        for prompt in (PROMPT[1:], PROMPT[2:])
    ]
    for sequence in (good[0], bad, good[1]):
        loop.add([sequence])
    for _ in loop.run():
        loop.scheduler.check()
    assert re.search(message, str(bad.error))
    assert (bad.finish_reason, len(bad.output.tokens)) == ("error", 4)
    assert [g.output.tokens for g in good] == [g.output.tokens for g in alone]
    assert runner.cache.num_available == runner.cache.capacity


def test_an_interrupt_in_the_middle_of_a_pass_frees_everything() -> None:
    class Interrupted(Scripted):
        def propose(self, sequences: Any, budgets: Any) -> Sequence[DraftTree]:
            if len(self.budgets) > 3:
                raise KeyboardInterrupt
            return super().propose(sequences, budgets)

    runner = tiny_runner()
    with pytest.raises(KeyboardInterrupt):
        decode(runner, [PROMPT], drafter=Interrupted(EMPTY))
    runner.cache.check()
    assert runner.cache.num_available == runner.cache.capacity


def test_a_cancelled_request_keeps_its_text_and_lets_the_others_go_on() -> None:
    runner = tiny_runner()
    loop, (a, b) = start(runner, [PROMPT, PROMPT[1:]], max_new_tokens=20)
    for _ in range(5):
        loop.step()
    loop.cancel(a)
    for _ in loop.run():
        runner.cache.check()
    assert (a.finish_reason, a.output.tokens) == ("cancelled", by_hand(PROMPT, 5))
    assert b.output.tokens == by_hand(PROMPT[1:], 20)


def test_when_the_first_sample_is_cancelled_the_next_one_leads() -> None:
    runner = tiny_runner()
    loop, group = start(runner, [[1] * 100], n=3, temperature=1.0, max_new_tokens=5, decoder={"token_budget": 30})
    loop.step()
    loop.cancel(group[0])
    loop.cancel(group[2])
    for _ in loop.run():
        runner.cache.check()
    assert [g.finish_reason for g in group] == ["cancelled", "length", "cancelled"]
    (alone,) = decode(tiny_runner(), [[1] * 100], temperature=1.0, max_new_tokens=5, sample_index=1)
    assert group[1].output.tokens == alone.output.tokens


class Even:
    """Allow even tokens after even paths, multiples of three else; refuse paths that it did not allow."""

    def mask(self, path: Sequence[int]) -> NDArray[np.uint32]:
        for i in range(len(path)):
            assert self._allows(path[:i], path[i]), "asked for a path that it forbids"
        bits = np.array([self._allows(path, token) for token in range(128)])
        return np.packbits(bits, bitorder="little").view(np.uint32)

    @staticmethod
    def _allows(path: Sequence[int], token: int) -> bool:
        return token % (2 if sum(path) % 2 == 0 else 3) == 0


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 1}])
def test_a_constraint_holds_at_every_node(options: dict[str, Any]) -> None:
    options = {**options, "constraint": Even(), "max_new_tokens": 60}
    (plain,) = decode(tiny_runner(), [PROMPT], **options)
    for drafter in (NGram(min_ngram=1), Prediction([t if i % 5 else 1 for i, t in enumerate(plain.output.tokens)])):
        (drafted,) = decode(tiny_runner(), [PROMPT], drafter=drafter, **options)
        assert drafted.output.tokens == plain.output.tokens
    assert all(Even._allows(plain.output.tokens[:i], t) for i, t in enumerate(plain.output.tokens))


def test_logits_processors_see_the_path_of_their_own_node() -> None:
    def no_repeats(tokens: Sequence[int], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        logits[list(tokens[-6:])] = -np.inf
        return logits

    options: dict[str, Any] = {"logits_processors": (no_repeats,), "max_new_tokens": 60}
    (plain,) = decode(tiny_runner(), [PROMPT], **options)
    (drafted,) = decode(tiny_runner(), [PROMPT], drafter=Prediction(plain.output.tokens), **options)
    assert drafted.output.tokens == plain.output.tokens
    assert drafted.stats.tokens_per_step > 5
    assert all(t not in plain.tokens[max(0, i - 6) : i] for i, t in enumerate(plain.tokens) if i >= len(PROMPT))


def test_logprobs_are_the_raw_log_softmax_and_do_not_depend_on_drafts() -> None:
    options: dict[str, Any] = {"logprobs": 3, "temperature": 0.7, "seed": 9, "max_new_tokens": 24}
    (plain,) = decode(tiny_runner(), [PROMPT], **options)
    (drafted,) = decode(tiny_runner(), [PROMPT], drafter=Prediction(plain.output.tokens), **options)
    assert drafted.logprobs == plain.logprobs
    runner = tiny_runner(ops=ReferenceOps())
    for i, entry in enumerate(plain.logprobs):
        text = plain.tokens[: len(PROMPT) + i]
        kv = runner.ops.kv_alloc(runner.model.spec("f32"), 4)
        plan = runner.ops.plan([Segment(list(range(4)), 0, text)], 32)
        x = runner.ops.numpy(runner.model.forward(plan, kv)[0])[-1].astype(np.float64)
        raw = x - x.max() - np.log(np.exp(x - x.max()).sum())
        assert entry.token == plain.output.tokens[i]
        assert entry.logprob == pytest.approx(raw[entry.token], abs=1e-4)
        assert [token for token, _ in entry.top] == np.argsort(-raw, kind="stable")[:3].tolist()


def test_the_seed_decides_the_text_and_the_sample_index_draws_another() -> None:
    def text(**options: Any) -> list[int]:
        return decode(tiny_runner(), [PROMPT], temperature=1.0, **options)[0].output.tokens

    assert text(seed=1) == text(seed=1)
    assert len({tuple(text(seed=1)), tuple(text(seed=2)), tuple(text(seed=1, sample_index=1))}) == 3


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("budget", [0, 3, 16])
def test_a_dead_end_of_a_constraint_is_met_after_the_same_tokens_whatever_was_drafted(
    raises: bool, budget: int
) -> None:
    (free,) = decode(tiny_runner(), [PROMPT], max_new_tokens=24)

    class DeadEnd:
        def mask(self, path: Sequence[int]) -> NDArray[np.uint32]:
            if len(path) >= 9 and raises:
                raise LookupError("the grammar broke")
            return np.full(4, 0 if len(path) >= 9 else 2**32 - 1, np.uint32)

    options = {"constraint": DeadEnd(), "max_new_tokens": 24, "max_draft": budget}
    loop, (g,) = start(tiny_runner(), [PROMPT], Prediction(free.output.tokens), **options)
    for _ in loop.run():
        pass
    with pytest.raises((UsageError, LookupError), match="grammar broke" if raises else "no token is allowed"):
        raise g.error
    assert g.output.tokens == free.output.tokens[:9]
    assert g.stats.steps < 9 or budget == 0, "nothing was accepted: the test could not fail"


def test_a_step_is_also_timed_by_the_work_of_its_thread_unless_the_clock_is_given() -> None:
    def times(**options: Any) -> Any:
        runner = tiny_runner()
        loop = Decoder(runner, **options)
        loop.add([sequence_of(request([1, 2, 3], max_new_tokens=3), runner)])
        return [step.times for steps in loop.run() for step in steps]

    assert len(times()) == 3
    for one in times():
        assert one.worked is not None
        assert one.worked.forward > 0
        assert one.worked.worked is None
    assert all(one.worked is None for one in times(clock=lambda: 1.0))


def test_what_a_drafter_learns_from_a_pass_is_timed_as_drafting() -> None:
    now = [0.0]

    class Learning(Scripted):
        def observe(self, steps: Any, passed: Any) -> None:
            now[0] += 1.0

    loop, (sequence,) = start(
        tiny_runner(), [PROMPT], Learning(EMPTY), max_new_tokens=4, record=True, decoder={"clock": lambda: now[0]}
    )
    for _ in loop.run():
        pass
    assert [step.times.draft for step in sequence.steps] == [1.0] * 4
    assert (sequence.stats.prefill_seconds, sequence.stats.decode_seconds) == (1.0, 3.0)
    assert sequence.stats.seconds["draft"] == 4.0
