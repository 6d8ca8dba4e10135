from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from outpace.errors import UsageError
from outpace.ops.protocol import Ops
from outpace.runner import Runner, ScheduledSequence
from outpace.types import TokenLogprob
from outpace.types.tree import NO_TOKEN, DraftTree
from tests.decoding import request, tiny_runner
from tests.implementations import MAKERS

TOKENS = [5, 6, 7, 8, 9, 10, 11]
DRAFT = DraftTree((20, 21, 22, 23), (-1, 0, -1, 2), (("test",),) * 4, (0.5,) * 4)


@pytest.fixture(params=MAKERS)
def ops(request: Any) -> Ops:
    return MAKERS[request.param](2)


def scheduled(runner: Runner, tokens: list[int] = TOKENS, end: int | None = None, **fields: Any) -> ScheduledSequence:
    table = fields.pop("table", None) or runner.cache.open((), b"salt")
    return ScheduledSequence(table, request(tokens[:3]), tokens, len(tokens) if end is None else end, **fields)


def bits(ops: Ops, x: Any) -> NDArray[np.uint32]:
    return ops.numpy(x).view(np.uint32)


# -- one sequence ------------------------------------------------------------------------------------


def test_a_sequence_starts_at_its_tables_length_and_is_scored_where_it_reaches_its_end() -> None:
    runner = tiny_runner()
    part = scheduled(runner, end=4, tree=DraftTree())
    assert (part.start, part.scored, part.num_scored) == (0, False, 0)
    runner.forward([part])
    part.table.commit(range(4), TOKENS[:4])
    rest = scheduled(runner, table=part.table, tree=DRAFT)
    assert (rest.start, rest.scored, rest.num_scored) == (4, True, 5)


def test_what_is_scored_is_settled_when_it_is_scheduled() -> None:
    tokens = TOKENS.copy()
    part = scheduled(tiny_runner(), tokens)
    tokens.append(1)
    assert part.scored
    assert part.num_scored == 1


def test_paths_lead_from_the_root_to_every_scored_row() -> None:
    part = scheduled(tiny_runner(), tree=DRAFT)
    assert part.paths() == [(), (20,), (20, 21), (22,), (22, 23)]


# -- a pass ------------------------------------------------------------------------------------------


def test_a_pass_says_where_each_sequences_rows_are(ops: Ops) -> None:
    runner = tiny_runner(ops=ops)
    batch = [scheduled(runner, end=4), scheduled(runner, tree=DRAFT), scheduled(runner, [3, 2, 1])]
    passed = runner.forward(batch, taps=(1,))
    assert passed.batch is batch
    assert passed.rows == (range(4), range(4, 15), range(15, 18))
    hidden = ops.numpy(passed.hidden[1])
    assert len(hidden) == 18
    assert ops.numpy(passed.logits).shape == (5 + 1, 97)
    for part, rows in zip(batch, passed.rows, strict=True):
        alone = scheduled(runner, list(part.tokens), part.end, tree=part.tree)
        own = ops.numpy(runner.forward([alone], taps=(1,)).hidden[1])
        assert (own.view(np.uint32) == hidden[rows.start : rows.stop].view(np.uint32)).all()


def test_a_pass_without_scored_rows_has_no_logits(ops: Ops) -> None:
    runner = tiny_runner(ops=ops)
    passed = runner.forward([scheduled(runner, end=4), scheduled(runner, end=2)])
    assert ops.numpy(passed.logits).shape == (0, 97)
    assert passed.hidden == {}
    assert runner.sample(passed.logits, passed.batch) == [[], []]
    assert [p.size for p in runner.probs(passed.logits, passed.batch)] == [0, 0]
    asked = ScheduledSequence(runner.cache.open(()), request([1, 2], logprobs=2), [1, 2], 1)
    assert runner.logprobs(runner.forward([asked]).logits, [asked], [[]]) == [None]


@pytest.mark.parametrize("taps", [(0,), (1,), (2,), (3,), (0, 1, 2, 3), (2, 2)])
def test_logits_have_the_same_bits_whatever_is_tapped(ops: Ops, taps: tuple[int, ...]) -> None:
    runner = tiny_runner(ops=ops)
    plain = runner.forward([scheduled(runner, tree=DRAFT)])
    tapped = runner.forward([scheduled(runner, tree=DRAFT)], taps)
    assert (bits(ops, plain.logits) == bits(ops, tapped.logits)).all()
    assert set(tapped.hidden) == set(taps)


def test_hidden_states_are_what_goes_from_layer_to_layer(ops: Ops) -> None:
    runner = tiny_runner(ops=ops)
    model = runner.model
    part = scheduled(runner)
    hidden = runner.forward([part], taps=(0, 1, 2, 3)).hidden
    segment = runner_segment(part)
    plan = ops.plan([segment], runner.cache.block_size)
    assert (bits(ops, hidden[0]) == bits(ops, ops.embed(model.embedding, plan))).all()
    for i, layer in enumerate(model.layers):
        after = ops.decoder_layers(hidden[i], [layer.handle], runner.cache.kv(), plan)
        assert (bits(ops, hidden[i + 1]) == bits(ops, after)).all()
    normed = ops.rms_norm(hidden[2], model.norm, model.config.eps)
    assert (bits(ops, hidden[3]) == bits(ops, normed)).all()
    logits = ops.numpy(ops.linear(hidden[3], model.output))[-1]
    np.testing.assert_allclose(logits, ops.numpy(runner.forward([scheduled(runner)]).logits)[0], rtol=1e-5, atol=1e-5)


def runner_segment(part: ScheduledSequence) -> Any:
    from outpace.types import Segment

    return Segment(part.table.blocks, part.start, list(part.tokens))


@pytest.mark.parametrize("tap", [-1, 4])
def test_a_tap_that_the_network_does_not_have_is_refused(tap: int) -> None:
    runner = tiny_runner()
    with pytest.raises(UsageError, match=rf"tap {tap} is outside \[0, 3\]"):
        runner.forward([scheduled(runner)], taps=(tap,))


# -- a private cache ---------------------------------------------------------------------------------


def test_a_scratch_runner_computes_the_same_and_leaves_the_cache_alone(ops: Ops) -> None:
    runner = tiny_runner(ops=ops, context=64)
    scratch = runner.scratch(3)
    assert (scratch.cache.capacity, scratch.context, scratch.cache.spec) == (3, 64, runner.cache.spec)
    here, there = runner.forward([scheduled(runner)]), scratch.forward([scheduled(scratch)])
    assert (bits(ops, here.logits) == bits(ops, there.logits)).all()
    assert runner.cache.num_available == runner.cache.capacity - 1
    assert scratch.cache.num_available == 2


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8}, {"temperature": 0.8, "repetition_penalty": 1.3}])
def test_a_sequence_alone_is_sampled_as_it_is_beside_others(ops: Ops, options: dict[str, Any]) -> None:
    runner = tiny_runner(ops=ops)
    one, other = part_of(runner, seed=3, **options), part_of(runner, last=20, seed=4, temperature=1.0)
    together = runner.sample(runner.forward([one, other]).logits, [one, other])
    for part, expected in ((one, together[0]), (other, together[1]), (one, together[0])):
        assert runner.sample(runner.forward([part]).logits, [part]) == [expected]


# -- what cannot be sampled --------------------------------------------------------------------------


class Dead:
    """Allows every token, but fails on output that ends with one of `ends`: raises, or allows nothing there."""

    def __init__(self, ends: tuple[int, ...], raises: bool = False) -> None:
        self.ends, self.raises = ends, raises

    def mask(self, path: Any) -> NDArray[np.uint32]:
        is_dead = bool(path) and path[-1] in self.ends
        if is_dead and self.raises:
            raise LookupError("the grammar broke")
        return np.full(4, 0 if is_dead else 2**32 - 1, np.uint32)


def part_of(runner: Runner, last: int = 11, tree: DraftTree = DRAFT, **options: Any) -> ScheduledSequence:
    tokens = [*TOKENS[:-1], last]
    return ScheduledSequence(runner.cache.open(()), request(tokens[:3], **options), tokens, len(tokens), tree)


def ends_in_20(tokens: Any, logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return logits * np.float32(np.nan) if tokens[-1] == 20 else logits


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"constraint": Dead((20,))}, "no token is allowed"),
        ({"constraint": Dead((20,), raises=True)}, "the grammar broke"),
        ({"logits_processors": (ends_in_20,)}, "a logit is NaN"),
        ({"logits_processors": (lambda tokens, x: x[:1] if tokens[-1] == 20 else x,)}, r"shape \[97\].*float32 \[1\]"),
        ({"logits_processors": (lambda tokens, x: None if tokens[-1] == 20 else x,)}, "got None"),
    ],
    ids=["nothing allowed", "constraint raises", "processor breaks", "processor's shape", "processor's type"],
)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_draft_node_without_a_token_fails_nobody_and_a_last_token_without_one_raises(
    ops: Ops, options: dict[str, Any], error: str, temperature: float
) -> None:
    runner = tiny_runner(ops=ops)
    other = part_of(runner, temperature=temperature)
    part, plain = part_of(runner, temperature=temperature, **options), part_of(runner, temperature=temperature)
    logits = runner.forward([other, part]).logits
    expected = runner.sample(runner.forward([plain]).logits, [plain])[0]
    found = runner.sample(logits, [other, part])
    assert found == [expected, [expected[0], NO_TOKEN, *expected[2:]]]
    distributions = runner.probs(logits, [other, part])
    assert not distributions[1][1].any()
    assert (np.delete(distributions[1], 1, 0) == np.delete(distributions[0], 1, 0)).all()

    at_its_end = part_of(runner, last=20, temperature=temperature, **options)
    logits = runner.forward([other, at_its_end]).logits
    for call in (runner.sample, runner.probs):
        with pytest.raises((UsageError, LookupError), match=error):
            call(logits, [other, at_its_end])


def test_a_bias_outside_the_vocabulary_fails_its_own_request_alone(ops: Ops) -> None:
    runner = tiny_runner(ops=ops)
    fine, wrong = part_of(runner, temperature=1.0), part_of(runner, logit_bias={97: 1.0}, tree=DraftTree())
    logits = runner.forward([fine, wrong]).logits
    with pytest.raises(UsageError, match=r"logit_bias names token 97; the vocabulary is \[0, 97\)"):
        runner.sample(logits, [fine, wrong])
    assert len(runner.sample(ops.select(logits, range(5)), [fine])[0]) == 5


@pytest.mark.parametrize("mask", [np.ones(3, np.uint32), np.ones(4, np.int32), np.ones((1, 4), np.uint32), [1] * 4])
def test_a_mask_that_does_not_fit_the_vocabulary_is_refused(ops: Ops, mask: Any) -> None:
    runner = tiny_runner(ops=ops)
    part = part_of(runner, constraint=SimpleNamespace(mask=lambda path: mask))
    with pytest.raises(UsageError, match=r"a constraint's mask over 97 tokens must be uint32 \[4\], got"):
        runner.sample(runner.forward([part]).logits, [part])


def test_logprobs_are_of_the_requests_that_ask_for_them(ops: Ops) -> None:
    runner = tiny_runner(ops=ops)
    batch = [part_of(runner), part_of(runner, logprobs=0), part_of(runner, logprobs=3, tree=DraftTree())]
    logits = runner.forward(batch).logits
    targets = runner.sample(logits, batch)
    targets[1][2] = NO_TOKEN
    broken = ops.numpy(logits)
    broken[7] = np.nan  # that row: there is no token to report
    none, own, tops = runner.logprobs(ops.array(broken), batch, targets)
    assert none is None
    assert own is not None
    assert tops is not None
    x = ops.numpy(logits).astype(np.float64)
    raw = x - x.max(axis=1, keepdims=True)
    raw -= np.log(np.exp(raw).sum(axis=1, keepdims=True))
    assert own[2] == TokenLogprob(NO_TOKEN, -np.inf)
    for i in (0, 1, 3, 4):
        assert (own[i].token, own[i].top) == (targets[1][i], ())
        assert own[i].logprob == pytest.approx(raw[5 + i, targets[1][i]], abs=1e-5)
    assert [token for token, _ in tops[0].top] == np.argsort(-raw[10], kind="stable")[:3].tolist()
