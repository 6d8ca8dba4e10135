from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from outpace.ops.reference.attention import CHUNK, Seen, attend, make_plan
from outpace.ops.reference.storage import Storage
from outpace.types import KVSpec, Segment

SPEC = KVSpec(num_layers=1, num_kv_heads=2, head_width=8, format="f32", block_size=4)
HEADS = 4

SCALE = 8**-0.5  # heads are 8 wide


def filled(num_blocks: int, seed: int = 0) -> tuple[Storage, NDArray[Any], NDArray[Any]]:
    """Return a storage whose every slot is written, and its keys and values [slots, G, K]."""
    rng = np.random.default_rng(seed)
    storage = Storage(SPEC, num_blocks)
    k, v = (rng.standard_normal((storage.num_slots, 2, 8), np.float32) for _ in range(2))
    storage.write(0, np.arange(storage.num_slots), k, v)
    return storage, k, v


def queries(num_tokens: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((num_tokens, HEADS, 8), np.float32)


def softmax_over(q_HK: NDArray[Any], k_NGK: NDArray[Any], v_NGK: NDArray[Any]) -> NDArray[np.float64]:
    """Return the definition, softmax(q k^T / sqrt(K)) v, in float64."""
    result = np.empty(q_HK.shape)
    for head, q in enumerate(q_HK.astype(np.float64)):
        group = head * k_NGK.shape[1] // len(q_HK)
        weights = np.exp(k_NGK[:, group] @ q / np.sqrt(len(q)))
        result[head] = weights / weights.sum() @ v_NGK[:, group]
    return result


# -- plans -------------------------------------------------------------------------------------------


def test_a_plan_lays_segments_one_after_another_and_scores_the_last_rows_of_each() -> None:
    chain = Segment(blocks=(5, 2), start=3, tokens=[10, 11], num_scored=1)
    tree = Segment(blocks=(0, 1), start=0, tokens=[20, 21, 22, 23], parents=[-1, 0, -1], num_scored=4)
    plan = make_plan([chain, tree], 4)
    assert plan.tokens.tolist() == [10, 11, 20, 21, 22, 23]
    assert plan.positions.tolist() == [3, 4, 0, 1, 2, 1]  # siblings share a position
    assert plan.slots.tolist() == [23, 8, 0, 1, 2, 3]  # and no slot
    assert plan.scored.tolist() == [1, 2, 3, 4, 5]
    assert [span.first_row for span in plan.spans] == [0, 2]


def test_a_node_sees_the_chain_its_ancestors_and_itself() -> None:
    (span,) = make_plan([Segment((0, 1), 1, [7, 8, 9, 9, 9], parents=[-1, 0, 0])], 4).spans
    assert span.seen == [
        Seen(1, 2),
        Seen(2, 3),
        Seen(3, 3, (3,)),
        Seen(4, 3, (3, 4)),
        Seen(4, 3, (3, 5)),
    ]


def test_a_token_of_a_full_segment_sees_all_of_it() -> None:
    (span,) = make_plan([Segment((0, 1), 2, [7, 8, 9], kind="full")], 4).spans
    assert span.seen == [Seen(2, 5), Seen(3, 5), Seen(4, 5)]


@pytest.mark.parametrize(("window", "first"), [(None, 0), (1, 9), (4, 6), (10, 0), (99, 0)])
def test_a_window_counts_the_token_itself(window: int | None, first: int) -> None:
    assert Seen(9, 10).first(window, 0) == first


def test_more_tokens_than_blocks_have_slots_for_are_our_own_bug() -> None:
    with pytest.raises(AssertionError, match="9 tokens do not fit 2 blocks"):
        make_plan([Segment((0, 1), 6, [1, 2, 3])], 4)


# -- attention ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 1, 5, CHUNK, CHUNK + 7])
@pytest.mark.parametrize("start", [0, CHUNK - 1, 2 * CHUNK + 3])
def test_attention_is_the_softmax_over_what_a_token_sees(start: int, window: int | None) -> None:
    storage, k, v = filled(40)
    plan = make_plan([Segment(range(40), start, [1, 2, 3, 4], parents=[-1, 0, -1])], 4)
    q = queries(4)
    found = attend(q, 0, window, 0, SCALE, storage, plan)
    past = list(range(start + 1))  # the pending token's own slot is the last
    for row, slots in enumerate([past, [*past, start + 1], [*past, start + 1, start + 2], [*past, start + 3]]):
        seen = slots if window is None else slots[-window:]
        np.testing.assert_allclose(found[row], softmax_over(q[row], k[seen], v[seen]), atol=2e-6)


def test_a_token_that_is_not_seen_cannot_spoil_the_sum_even_if_it_is_no_number() -> None:
    storage, _, _ = filled(2)
    plan = make_plan([Segment((0, 1), 2, [1, 2, 3], parents=[-1, -1])], 4)
    before = attend(queries(3), 0, None, 0, SCALE, storage, plan)
    storage.write(0, np.array([3]), np.full((1, 2, 8), np.nan, np.float32), np.full((1, 2, 8), np.nan, np.float32))
    after = attend(queries(3), 0, None, 0, SCALE, storage, plan)
    assert after[[0, 2]].tobytes() == before[[0, 2]].tobytes()
    assert np.isnan(after[1]).all()


def test_reading_a_freed_block_is_our_own_bug() -> None:
    storage, _, _ = filled(2)
    plan = make_plan([Segment((-1, 0), 6, [1])], 4)
    attend(queries(1), 0, 3, 0, SCALE, storage, plan)  # it sees positions 4 to 6
    with pytest.raises(AssertionError, match="position 3 is inside the window but its block was freed"):
        attend(queries(1), 0, 4, 0, SCALE, storage, plan)


@pytest.mark.parametrize(("window", "lowest", "first"), [(None, 1, 1), (4, 1, 6), (20, 3, 3)])
def test_positions_before_the_lowest_are_never_seen(window: int | None, lowest: int, first: int) -> None:
    assert Seen(9, 10).first(window, lowest) == first
