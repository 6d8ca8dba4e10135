from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from outpace.drafters.chances import chances_of_logprobs, chances_of_scores
from outpace.drafters.eagle import EagleDrafter
from outpace.engine.decode import Decoder
from outpace.errors import UsageError
from outpace.ops.compose import compose_fuse, compose_states, compose_store
from outpace.ops.philox import gumbel
from outpace.ops.protocol import Ops
from outpace.runner import Runner, ScheduledSequence
from outpace.types import TOKEN_STREAM, Segment
from outpace.types.tree import DraftTree
from tests.decoding import decode, request, sequence_of, tiny_ops, tiny_runner
from tests.eagle import tiny_drafter, tiny_eagle
from tests.implementations import MAKERS

VOCAB = 97
LENGTH = 40
SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95, "seed": 3}


def prompts(count: int) -> list[list[int]]:
    rng = np.random.default_rng(2)
    return [rng.integers(0, VOCAB, 2 + 9 * i).tolist() for i in range(count)]


class Checked(EagleDrafter):
    """Compare each draft with one computed from nothing: a pass over all tokens, then the network over all slots."""

    def __init__(self, runner: Runner, width: int = 2, seed: int = 0) -> None:
        network = tiny_eagle(runner.model, seed)
        super().__init__(network, runner, width=width, min_confidence=0.0, min_expanded=0.0)
        self.drafts = self.branchings = self.empty = 0

    def propose(self, sequences: Sequence[Any], budgets: Sequence[int]) -> list[DraftTree]:
        trees = super().propose(sequences, budgets)
        for sequence, budget, tree in zip(sequences, budgets, trees, strict=True):
            if tree.tokens:
                self.drafts += 1
                self.branchings += list(tree.parents) != list(range(-1, len(tree) - 1))
                parents = sorted({-1, *tree.parents})
                self.check_children(sequence, tree, parents[self.drafts % len(parents)])
            elif budget:
                self.empty += 1
        return trees

    def check_children(self, sequence: Any, tree: DraftTree, parent: int) -> None:
        path = [tree.tokens[node] for node in tree.path(parent)]
        nodes = tree.children(parent)
        tokens, scores = self.from_nothing(sequence, path, 8)
        assert [tree.tokens[node] for node in nodes] == tokens[: len(nodes)]
        sampling = sequence.request.options.sampling
        if sampling.penalises:
            return  # what they make of the logits is compared through the tokens
        if sampling.is_argmax:
            total = np.log(np.exp(scores).sum())
            chances = chances_of_logprobs([scores[token] - total for token in tokens])
        else:
            request, position = sequence.request, len(sequence.tokens) + len(path)
            noise = gumbel(request.seed, position, VOCAB, request.sample_index, TOKEN_STREAM)
            chances = chances_of_scores([scores[t] / sampling.temperature + noise[t] for t in tokens], 0.8)
        assert [tree.confidence[node] for node in nodes] == pytest.approx(chances[: len(nodes)], rel=1e-3)

    def from_nothing(self, sequence: Any, path: list[int], count: int) -> tuple[list[int], Any]:
        """Return the best tokens behind a path of guesses, by ops that a draft does not use, and all tokens' logits."""
        ops, network, text = self.runner.ops, self.network, list(sequence.tokens)
        scratch = self.runner.scratch(32)
        part = ScheduledSequence(scratch.cache.open(()), sequence.request, text, len(text))
        hidden = scratch.forward([part], self.taps).hidden
        kv, layer = ops.kv_alloc(network.spec("f32", 32), 16), network.layer
        taps = [hidden[tap] for tap in self.taps]
        features, start = compose_fuse(ops, network.fusion, [(taps, range(len(text) - 1))]), 1
        for token in [*path, None]:
            plan = ops.plan([Segment(list(range(16)), start, text[start:])], 32)
            queries = compose_store(ops, features, layer, kv, plan)
            features = compose_states(ops, queries, features, layer, kv, plan)
            start = len(text)
            if token is not None:
                text.append(token)
        tokens = np.array(network.config.head_tokens)
        known = [r for r, t in enumerate(tokens) if r < network.config.num_fixed or t in sequence.tokens]
        head = network.pack_rows(range(len(tokens)))
        logits = ops.numpy(ops.linear(ops.rms_norm(features, layer.head_norm, layer.layer.eps), head))[0]
        wide = np.full((1, VOCAB), -np.inf, np.float32)
        wide[0, tokens[known]] = logits[known]
        ahead = ScheduledSequence(part.table, sequence.request, text, len(text))
        batch = self.runner.sampling_batch([ahead])
        possible = ops.probs(ops.array(wide), batch)[0] > 0
        found = ops.sample(ops.array(wide), batch, count)[0].tolist()
        return [token for token in found if possible[token] or ahead.request.options.sampling.greedy], wide[0]


def runner(ops: Ops | None = None, **options: Any) -> Runner:
    return tiny_runner(ops=ops or tiny_ops(), vocab_size=VOCAB, **options)


def plain(prompt: list[int], **options: Any) -> list[int]:
    return decode(runner(), [prompt], max_new_tokens=LENGTH, **options)[0].output.tokens


@pytest.mark.parametrize(
    "sampling", [{}, SAMPLED, SAMPLED | {"repetition_penalty": 1.2}], ids=["greedy", "sampled", "penalty"]
)
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("implementation", list(MAKERS))
def test_drafts_are_those_computed_from_nothing(implementation: str, width: int, sampling: dict[str, Any]) -> None:
    target, length = runner(MAKERS[implementation](1)), 8 if implementation == "reference" else 20  # it is slow
    drafter = Checked(target, width)
    found = decode(target, prompts(5), drafter=drafter, max_new_tokens=length, check=True, max_draft=5, **sampling)
    assert drafter.drafts > 2 * length
    assert (drafter.branchings > length) == (width > 1)
    assert drafter.empty == 5  # before the first pass there is no hidden state
    for g, prompt in zip(found, prompts(5), strict=True):
        assert (
            g.output.tokens
            == decode(runner(MAKERS[implementation](1)), [prompt], max_new_tokens=length, **sampling)[0].output.tokens
        )


def test_chunked_prefill_brings_the_same_drafts() -> None:
    target = runner()
    drafter = Checked(target)
    (g, other) = decode(
        target, [list(range(90)), [5]], drafter=drafter, max_new_tokens=20, decoder={"token_budget": 7}, check=True
    )
    assert g.output.tokens == decode(runner(), [list(range(90))], max_new_tokens=20)[0].output.tokens
    assert drafter.empty == 2
    assert len(other.output.tokens) == 20


def test_preempted_sequences_draft_on() -> None:
    target = runner(capacity=8)
    drafter = Checked(target)
    found = decode(target, prompts(6), drafter=drafter, max_new_tokens=LENGTH, check=True)
    assert sum(g.stats.preemptions for g in found) > 0
    assert [g.output.tokens for g in found] == [plain(prompt) for prompt in prompts(6)]
    assert drafter.drafts > 100


def test_without_a_cache_everything_is_computed_again_and_the_drafts_are_the_same() -> None:
    target = runner()
    drafter = Checked(target)
    (g,) = decode(target, prompts(2)[1:], drafter=drafter, max_new_tokens=20, reuses_cache=False)
    assert g.output.tokens == plain(prompts(2)[1])[:20]
    assert drafter.drafts > 10


@pytest.mark.parametrize("share_prefixes", [True, False])
def test_samples_of_one_prompt_draft_from_their_first_step_on(share_prefixes: bool) -> None:
    target = runner(share_prefixes=share_prefixes)
    drafter = Checked(target)
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
        asked = request(prompts(6)[5], max_new_tokens=20, sample_index=i, **SAMPLED)
        alone = runner()
        single = sequence_of(asked, alone)
        other = Decoder(alone)
        other.add([single])
        list(other.run())
        assert g.output.tokens == single.output.tokens
    assert drafter.empty == 0  # the prompt's hidden states serve them all


def test_a_prefix_that_was_drafted_for_is_found_with_its_keys_and_values() -> None:
    target = runner()
    drafter = Checked(target)
    start = list(range(80))
    decode(target, [[*start, 3]], drafter=drafter, max_new_tokens=8)
    before = drafter.empty
    (g,) = decode(target, [[*start, 90]], drafter=drafter, max_new_tokens=8, check=True)
    assert g.stats.cached_tokens == 64
    assert drafter.empty == before + 1
    (again,) = decode(target, [[*start[:64], 90]], drafter=drafter, max_new_tokens=8)
    assert again.stats.cached_tokens == 64
    assert drafter.empty == before + 1  # one pending token behind a known beginning: drafted at once


def test_a_prefix_that_others_computed_is_computed_again_once() -> None:
    target = runner()
    drafter = Checked(target)
    text = list(range(80))
    decode(target, [text], max_new_tokens=8)
    (first,) = decode(target, [text], drafter=drafter, max_new_tokens=8, check=True)
    assert first.stats.cached_tokens == 0
    assert drafter.drafts > 0
    (second,) = decode(target, [text], drafter=drafter, max_new_tokens=8, check=True)
    assert second.stats.cached_tokens == 64
    (other,) = decode(target, [text], max_new_tokens=8)
    assert other.stats.cached_tokens == 64


def test_proposals_are_the_same_alone_and_in_a_batch() -> None:
    def drafts(batch: list[list[int]]) -> dict[tuple[int, ...], list[DraftTree]]:
        target = runner()
        drafter = tiny_drafter(target)
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


def test_a_sampled_request_is_drafted_with_the_targets_noise() -> None:
    """At a temperature where noise decides, drafter and target take the same token, whatever they think of it."""
    hot: dict[str, Any] = {"temperature": 100.0, "seed": 1, "max_new_tokens": 100, "max_draft": 1}
    target = runner()
    drafter = EagleDrafter(tiny_eagle(target.model, num_fixed=64), target, min_confidence=0.0)
    (g,) = decode(target, [[1, 2, 3]], drafter=drafter, **hot)
    assert g.stats.accepted["eagle"] > 0.5 * g.stats.proposed["eagle"]  # the head has two thirds of the vocabulary


@pytest.mark.parametrize("width", [1, 2])
def test_a_draft_ends_where_it_is_unlikely_to_go_on(width: int) -> None:
    target = runner()
    sizes = {}
    for minimum in (0.0, 0.3, 1.0):
        drafter = tiny_drafter(target, min_confidence=minimum, width=width)
        (g,) = decode(target, [[1, 2, 3]], drafter=drafter, max_new_tokens=LENGTH, max_draft=6)
        sizes[minimum] = g.stats.proposed.get("eagle", 0) / g.stats.steps
    assert sizes[0.0] > sizes[0.3] > sizes[1.0] == 0


@pytest.mark.parametrize(
    ("name", "value"), [("min_confidence", 1.5), ("min_expanded", -0.1), ("width", 0), ("branches", 0)]
)
def test_settings_that_mean_nothing_are_refused(name: str, value: float) -> None:
    target = runner()
    with pytest.raises(UsageError, match=name):
        EagleDrafter(tiny_eagle(target.model), target, **{name: value})  # type: ignore[arg-type]


def test_a_request_that_bans_every_token_of_the_head_is_not_drafted_for() -> None:
    target = runner()
    drafter = tiny_drafter(target)
    banned = dict.fromkeys(drafter.network.config.head_tokens, float("-inf"))
    (g,) = decode(target, [[1, 2, 3]], drafter=drafter, max_new_tokens=20, logit_bias=banned, temperature=1.0, seed=1)
    assert g.stats.proposed.get("eagle", 0) == 0
    assert (
        g.output.tokens
        == decode(runner(), [[1, 2, 3]], max_new_tokens=20, logit_bias=banned, temperature=1.0, seed=1)[0].output.tokens
    )


def test_nothing_is_left_of_a_request_that_ended() -> None:
    target = runner()
    drafter = tiny_drafter(target)
    decode(target, prompts(3), drafter=drafter, max_new_tokens=8)
    assert not drafter._sequences


def test_two_drafters_of_one_model_have_keys_and_values_of_their_own() -> None:
    """Side by side in one pass, and then each on what the other has drafted for: blocks are found again."""
    target = runner()
    drafters = [Checked(target), Checked(target, seed=1)]
    assert [drafter.group for drafter in drafters] == ["eagle", "eagle 2"]
    texts = [[*range(1, 70)], [*range(7, 77)]]
    expected = [plain(text) for text in texts]
    for turn in (drafters, drafters[::-1]):
        loop = Decoder(target)
        group = []
        for drafter, text in zip(turn, texts, strict=True):
            group.append(sequence_of(request(text, max_new_tokens=LENGTH), target, drafter=drafter))
            loop.add([group[-1]])
        for _ in loop.run():
            loop.scheduler.check()
        assert [sequence.output.tokens for sequence in group] == expected
        assert not any(sequence.stats.warnings for sequence in group)
    assert all(drafter.drafts > 70 for drafter in drafters)
    assert [drafter.empty for drafter in drafters] == [2, 2]  # before a turn's first pass there is no hidden state
