"""What every trained drafter promises: drafts that depend on its sequence alone, whatever brought the sequence here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from outpace.drafters import Prediction, Suffix
from outpace.drafters.block import BlockDrafter
from outpace.drafters.marginals import Guess, LevelSampler, best_tree, drafted
from outpace.drafters.medusa import MedusaDrafter
from outpace.drafters.router import Auto, Experience
from outpace.engine.decode import Decoder
from outpace.ops.protocol import Ops
from outpace.runner import Runner, ScheduledSequence
from outpace.types import Segment
from outpace.types.tree import DraftTree
from tests.decoding import decode, request, sequence_of, tiny_ops, tiny_runner
from tests.implementations import MAKERS
from tests.trained import tiny_block_drafter, tiny_medusa_drafter

VOCAB = 97
LENGTH = 60
SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95, "seed": 3}

Trained = MedusaDrafter | BlockDrafter


def medusa_logits(drafter: MedusaDrafter, hidden: list[Any], text: list[int], rows: list[int]) -> Any:
    """Return the logits of all heads behind a text, [heads, rows]."""
    ops, network = drafter.runner.ops, drafter.network
    states = network.states(ops.select(hidden[0], [len(text) - 2]), network.config.num_heads)
    head = network.pack_rows(rows)
    return np.concatenate([ops.numpy(ops.linear(x, head)) for x in states])


def block_logits(drafter: BlockDrafter, hidden: list[Any], text: list[int], rows: list[int]) -> Any:
    """Return the logits of all masks behind a text, [masks, rows], over keys and values written in one go."""
    ops, network, start = drafter.runner.ops, drafter.network, len(text) - 1
    num_masks, table = network.config.num_masks, list(range(8))
    kv = ops.kv_alloc(network.spec(drafter.runner.cache.spec.format, 32), 8)
    context = [ops.select(tap, range(start)) for tap in hidden]
    network.store(ops.plan([Segment(table, 0, text[:-1])], 32), context, start, kv)
    anchor = ops.plan([Segment(table, start, text[-1:])], 32)
    block = ops.plan([Segment(table, start, [0] * (1 + num_masks), kind="full")], 32)
    states = network.fill(anchor, block, [num_masks], [ops.select(tap, [start - 1]) for tap in hidden], kv)
    return ops.numpy(ops.linear(network.normed(states), network.head.pack(rows)))


KINDS: dict[str, tuple[Callable[[Runner], Any], Callable[[Any, list[Any], list[int], list[int]], Any]]] = {
    "medusa": (tiny_medusa_drafter, medusa_logits),
    "block": (tiny_block_drafter, block_logits),
}


class Checked:
    """A drafter whose drafts are compared with those computed from nothing: a pass over all tokens on a new cache."""

    def __init__(self, kind: str, runner: Runner) -> None:
        make, self.logits = KINDS[kind]
        self.drafter: Trained = make(runner)
        self.name, self.taps = kind, self.drafter.taps
        self.runner = runner
        self.drafts = self.empty = 0

    def propose(self, sequences: Sequence[Any], budgets: Sequence[int]) -> list[DraftTree]:
        trees = self.drafter.propose(sequences, budgets)
        for sequence, budget, tree in zip(sequences, budgets, trees, strict=True):
            if tree.tokens:
                self.drafts += 1
                expected = self.from_nothing(sequence, budget)
                assert (tree.tokens, tree.parents, tree.sources) == (
                    expected.tokens,
                    expected.parents,
                    expected.sources,
                )
                assert np.allclose(tree.confidence, expected.confidence, rtol=1e-5)
            elif budget:
                self.empty += 1
        return trees

    def from_nothing(self, sequence: Any, budget: int) -> DraftTree:
        drafter, text = self.drafter, list(sequence.tokens)
        config = drafter.network.config
        scratch = self.runner.scratch(32)
        part = ScheduledSequence(scratch.cache.open(()), sequence.request, text, len(text))
        hidden = scratch.forward([part], self.taps).hidden
        rows = [r for r, t in enumerate(config.head_tokens) if r < config.num_fixed or t in text]
        logits = self.logits(drafter, [hidden[tap] for tap in self.taps], text, rows)[:budget]
        tokens = np.array(config.head_tokens)[rows]
        guess = Guess(part.table, drafted(sequence.request), text, logits, tokens)
        sampler: LevelSampler = drafter._sampler
        (levels,) = sampler.levels([guess])
        if isinstance(drafter, MedusaDrafter):
            levels = [drafter._measured(k, level) for k, level in enumerate(levels)]
        return best_tree(levels, budget, 0.0, self.name)

    def observe(self, steps: Any, passed: Any) -> None:
        self.drafter.observe(steps, passed)

    def forget(self, request: int) -> None:
        self.drafter.forget(request)


def prompts(count: int) -> list[list[int]]:
    rng = np.random.default_rng(2)
    return [rng.integers(0, VOCAB, 2 + 9 * i).tolist() for i in range(count)]


def runner(ops: Ops | None = None, **options: Any) -> Runner:
    return tiny_runner(ops=ops or tiny_ops(), vocab_size=VOCAB, **options)


def plain(prompt: list[int], **options: Any) -> list[int]:
    return decode(runner(), [prompt], **{"max_new_tokens": LENGTH, **options})[0].output.tokens


both = pytest.mark.parametrize("kind", list(KINDS))


@both
@pytest.mark.parametrize(
    "sampling", [{}, SAMPLED, SAMPLED | {"repetition_penalty": 1.2}], ids=["greedy", "sampled", "penalty"]
)
@pytest.mark.parametrize("implementation", list(MAKERS))
def test_drafts_are_those_computed_from_nothing(kind: str, implementation: str, sampling: dict[str, Any]) -> None:
    count, length = (2, 12) if implementation == "reference" else (5, LENGTH)
    target = runner(MAKERS[implementation](1))
    drafter = Checked(kind, target)
    found = decode(target, prompts(count), drafter=drafter, max_new_tokens=length, check=True, max_draft=6, **sampling)
    assert drafter.drafts > 4 * count
    assert drafter.empty == count  # before the first pass there is no hidden state
    for g, prompt in zip(found, prompts(count), strict=True):
        other = runner(MAKERS[implementation](1))
        assert g.output.tokens == decode(other, [prompt], max_new_tokens=length, **sampling)[0].output.tokens
    assert sum(sum(g.stats.accepted.values()) for g in found) > 0 or length < LENGTH


@both
@pytest.mark.parametrize("format", ["bf16", "int8"])
def test_rounded_keys_and_values_bring_the_same_drafts_whoever_wrote_them(kind: str, format: Any) -> None:
    target = runner(kv=format)
    drafter = Checked(kind, target)
    decode(target, prompts(4), drafter=drafter, max_new_tokens=LENGTH, check=True)
    assert drafter.drafts > 80


@both
def test_chunked_prefill_brings_the_same_drafts(kind: str) -> None:
    target = runner()
    drafter = Checked(kind, target)
    (g, other) = decode(
        target, [list(range(90)), [5]], drafter=drafter, max_new_tokens=20, decoder={"token_budget": 7}, check=True
    )
    assert g.output.tokens == plain(list(range(90)), max_new_tokens=20)
    assert drafter.empty == 2
    assert len(other.output.tokens) == 20


@both
def test_preempted_sequences_draft_on(kind: str) -> None:
    target = runner(capacity=8)
    drafter = Checked(kind, target)
    found = decode(target, prompts(6), drafter=drafter, max_new_tokens=LENGTH, check=True)
    assert sum(g.stats.preemptions for g in found) > 0
    assert [g.output.tokens for g in found] == [plain(prompt) for prompt in prompts(6)]
    assert drafter.drafts > 100


@both
def test_without_a_cache_everything_is_computed_again_and_the_drafts_are_the_same(kind: str) -> None:
    target = runner()
    drafter = Checked(kind, target)
    (g,) = decode(target, prompts(2)[1:], drafter=drafter, max_new_tokens=20, reuses_cache=False)
    assert g.output.tokens == plain(prompts(2)[1])[:20]
    assert drafter.drafts > 10


@both
@pytest.mark.parametrize("share_prefixes", [True, False])
def test_samples_of_one_prompt_draft_from_their_first_step_on(kind: str, share_prefixes: bool) -> None:
    target = runner(share_prefixes=share_prefixes)
    drafter = Checked(kind, target)
    loop = Decoder(target)
    group = [
        sequence_of(request(prompts(6)[5], max_new_tokens=20, sample_index=i, **SAMPLED), target, drafter=drafter)
        for i in range(3)
    ]
    loop.add(group)
    for _ in loop.run():
        loop.scheduler.check()
    for i, g in enumerate(group):
        assert not g.stats.warnings
        assert g.output.tokens == plain(prompts(6)[5], max_new_tokens=20, sample_index=i, **SAMPLED)
    assert drafter.empty == 0  # the prompt's hidden states serve them all


@both
def test_a_prefix_that_was_drafted_for_is_found(kind: str) -> None:
    target = runner()
    drafter = Checked(kind, target)
    start = list(range(80))
    decode(target, [[*start, 3]], drafter=drafter, max_new_tokens=8)
    before = drafter.empty
    (g,) = decode(target, [[*start, 90]], drafter=drafter, max_new_tokens=8, check=True)
    assert g.stats.cached_tokens == 64
    assert drafter.empty == before + 1
    (again,) = decode(target, [[*start[:64], 90]], drafter=drafter, max_new_tokens=8)
    assert again.stats.cached_tokens == 64
    assert drafter.empty == before + 1  # one pending token behind a known beginning: drafted at once


@both
def test_proposals_are_the_same_alone_and_in_a_batch(kind: str) -> None:
    def drafts(batch: list[list[int]]) -> dict[tuple[int, ...], list[DraftTree]]:
        target = runner()
        drafter = KINDS[kind][0](target)
        loop = Decoder(target)
        asked = [request(prompt, max_new_tokens=LENGTH, **SAMPLED) for prompt in batch]
        sequences = [sequence_of(one, target, drafter=drafter, record=True) for one in asked]
        for sequence in sequences:
            loop.add([sequence])
        list(loop.run())
        return {s.request.prompt: [step.tree for step in s.steps] for s in sequences}

    together = drafts(prompts(4))
    for prompt in prompts(4):
        assert drafts([prompt])[tuple(prompt)] == together[tuple(prompt)]


@both
@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_the_router_asks_it_beside_others_and_merges_what_they_say(kind: str, sampling: dict[str, Any]) -> None:
    """On a machine where rows are believed to be cheap and asking free."""
    texts = prompts(4)
    expected = [plain(text, **sampling) for text in texts]
    target = runner()
    experience = Experience()
    experience.cost.observe([(1, 0)], 0.001)
    experience.cost.observe_probe(16, 0, [(0.001, 0.0011)])
    copied = Prediction([t if i % 7 else (t + 1) % VOCAB for i, t in enumerate(expected[3])])
    drafter = Auto([copied, Suffix(), KINDS[kind][0](target)], experience, lambda: 0.0)
    found = decode(target, texts, drafter=drafter, max_new_tokens=LENGTH, check=True, **sampling)
    assert [g.output.tokens for g in found] == expected
    assert {kind, "prediction"} <= {name for g in found for name in g.stats.proposed}


@both
def test_unlikely_nodes_are_left_out(kind: str) -> None:
    sizes = {}
    for minimum in (0.0, 0.15, 1.0):
        target = runner()
        drafter = KINDS[kind][0](target)
        drafter.min_confidence = minimum
        (g,) = decode(target, [[1, 2, 3]], drafter=drafter, max_new_tokens=LENGTH, max_draft=6)
        sizes[minimum] = g.stats.proposed.get(kind, 0) / g.stats.steps
    assert sizes[0.0] > sizes[0.15] > sizes[1.0] == 0


@both
def test_a_request_that_bans_every_token_of_the_head_is_not_drafted_for(kind: str) -> None:
    target = runner()
    drafter = KINDS[kind][0](target)
    banned = dict.fromkeys(drafter.network.config.head_tokens, float("-inf"))
    hot: dict[str, Any] = {"max_new_tokens": 20, "logit_bias": banned, "temperature": 1.0, "seed": 1}
    (g,) = decode(target, [[1, 2, 3]], drafter=drafter, **hot)
    assert g.stats.proposed.get(kind, 0) == 0
    assert g.output.tokens == plain([1, 2, 3], **hot)


@both
def test_nothing_is_left_of_a_request_that_ended(kind: str) -> None:
    target = runner()
    drafter = KINDS[kind][0](target)
    decode(target, prompts(3), drafter=drafter, max_new_tokens=8)
    assert len(drafter._states) == 0
    assert not getattr(drafter, "_sequences", ())
    assert not getattr(drafter, "_owns", ())
    assert target.cache.num_available == target.cache.capacity
