from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from outpace.errors import UsageError
from outpace.ops.protocol import Ops
from outpace.runner import Runner, ScheduledSequence
from outpace.tree import DraftTree
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
    assert passed.logits is None
    assert passed.hidden == {}
    assert runner.sample(passed.logits, passed.batch) == [[], []]
    assert [law.size for law in runner.law(passed.logits, passed.batch)] == [0, 0]
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
        after = ops.decoder_layer(hidden[i], layer, runner.cache.kv, plan)
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


# -- what a caller's functions return ------------------------------------------------------------------


def edited(found: Any) -> None:
    """Sample one row with a logits processor that returns `found`, or what `found` makes of the row."""
    runner = tiny_runner()
    process = found if callable(found) else lambda tokens, logits: found
    asked = request(TOKENS, logits_processors=[lambda tokens, logits: process(tokens, logits)])
    part = ScheduledSequence(runner.cache.open((), b"salt"), asked, TOKENS, len(TOKENS))
    runner.sample(runner.forward([part]).logits, [part])


@pytest.mark.parametrize(
    ("found", "what"),
    [
        (None, "None"),
        (0.5, "0.5"),
        (np.float32(0.5), r"np.float32\(0.5\)"),
        ([0.0] * 97, r"\[0.0, "),
        (np.zeros(100, np.float32), r"float32 \[100\]"),
        (np.zeros((1, 97), np.float32), r"float32 \[1, 97\]"),
        (np.zeros(97, np.int64), r"int64 \[97\]"),
        (np.zeros(97, np.complex64), r"complex64 \[97\]"),
        (np.zeros(97, object), r"object \[97\]"),
    ],
)
def test_a_logits_processor_that_returns_anything_but_a_row_of_floats_is_refused(found: Any, what: str) -> None:
    with pytest.raises(UsageError, match=rf"must return an array of floats \[97\], as it is given, got {what}"):
        edited(found)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_logits_processor_may_return_floats_of_any_width(dtype: Any) -> None:
    edited(lambda tokens, logits: logits.astype(dtype))


@pytest.mark.parametrize(
    "mask", [None, 5, np.ones(3, np.uint32), np.ones(4, np.int64), np.ones((1, 4), np.uint32), [1] * 4]
)
def test_a_constraint_whose_mask_has_not_a_bit_for_every_token_is_refused(mask: Any) -> None:
    class Fixed:
        def mask(self, path: Any) -> Any:
            return mask

    runner = tiny_runner()
    asked = request(TOKENS, constraint=Fixed())
    part = ScheduledSequence(runner.cache.open((), b"salt"), asked, TOKENS, len(TOKENS))
    with pytest.raises(UsageError, match=r"the constraint's mask must be uint32 \[4\], a bit for every token, got"):
        runner.sample(runner.forward([part]).logits, [part])
