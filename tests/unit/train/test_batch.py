from __future__ import annotations

import numpy as np
import pytest
import torch

from outpace.train.batch import Batch, Plan, look, make_batch
from outpace.train.target import EngineTarget
from outpace.train.text.corpus import Conversation


def conversation(num_prompt: int, num_response: int, first: int = 1) -> Conversation:
    return Conversation(np.arange(first, first + num_prompt + num_response, dtype=np.int32), num_prompt, False, "x")


def made(*conversations: Conversation, target: EngineTarget, **options: object) -> Batch:
    batch = make_batch(conversations, target, (1, 2), 3, **options)  # type: ignore[arg-type]
    assert batch is not None
    return batch


def test_drafts_begin_at_every_response_token_but_the_last(target: EngineTarget) -> None:
    """A prompt of 2 and a response of 4: tokens 1 to 6; the first response token, 3, is the first anchor."""
    batch = made(conversation(2, 4), target=target)
    assert batch.anchors.tolist() == [[2, 3, 4]]
    assert [depth.tokens.tolist() for depth in batch.depths] == [[4, 5, 6], [5, 6], [6]]
    assert [depth.rows.tolist() for depth in batch.depths] == [[0, 1, 2], [0, 1], [0]]
    assert [depth.labels.tolist() for depth in batch.depths] == [[0, 1, 2], [1, 2], [2]]
    assert batch.num_learned == 3


def test_labels_are_the_targets_own_states_before_the_token(target: EngineTarget) -> None:
    one, two = conversation(2, 4), conversation(3, 6, first=20)
    batch = made(one, two, target=target)
    last = target.config.num_layers + 1
    states = target.states([one.tokens, two.tokens], (last,))[last]
    assert torch.allclose(batch.final, torch.cat([states[0][2:5], states[1][3:8]]), atol=1e-5)
    # Depth 2 at the second anchor of the second conversation guesses token 3 + 1 + 2, from position 5.
    depth = batch.depths[1]
    at = depth.rows.tolist().index(1 * batch.anchors.shape[1] + 1)
    assert int(depth.tokens[at]) == two.tokens[6]
    assert torch.allclose(batch.final[depth.labels[at]], states[1][5], atol=1e-5)


def test_features_are_the_taps_without_their_size(target: EngineTarget) -> None:
    one, two = conversation(2, 4), conversation(3, 6, first=20)
    batch = made(one, two, target=target)
    assert batch.features.shape == (2, 9, 2 * target.config.width)
    taps = target.states([two.tokens], (1, 2))
    for i, tap in enumerate((1, 2)):
        x = taps[tap][0]
        expected = x / (x.pow(2).mean(-1, keepdim=True) + target.config.eps).sqrt()
        width = target.config.width
        assert torch.allclose(batch.features[1, :, i * width : (i + 1) * width], expected, atol=1e-5)
    assert not batch.features[0, 6:].any()


def test_a_share_of_the_anchors_is_drawn_by_the_generator_alone(target: EngineTarget) -> None:
    text = [conversation(2, 13), conversation(2, 2, first=40), conversation(1, 30, first=50)]
    first, again, other = (
        made(*text, target=target, rng=np.random.default_rng(seed), share=1 / 6) for seed in (0, 0, 1)
    )
    assert torch.equal(first.anchors, again.anchors)
    assert not torch.equal(first.anchors, other.anchors)
    assert [
        len(set((first.depths[0].rows // first.anchors.shape[1] == b).nonzero().flatten().tolist())) for b in range(3)
    ] == [2, 1, 5]
    for depth, k in zip(first.depths, (1, 2, 3), strict=True):
        where, anchor = depth.rows // first.anchors.shape[1], first.anchors.flatten()[depth.rows]
        assert all(int(text[b].tokens[i + k]) == t for b, i, t in zip(where, anchor, depth.tokens, strict=True))


def test_responses_too_short_for_a_draft_are_left_out(target: EngineTarget) -> None:
    assert make_batch([conversation(3, 1)], target, (1, 2), 3) is None
    batch = made(conversation(3, 1), conversation(2, 4), target=target)
    assert len(batch.tokens) == 1


@pytest.mark.parametrize("count", [1, 3])
def test_a_longer_neighbour_changes_nothing(target: EngineTarget, count: int) -> None:
    one = conversation(2, 6)
    alone = made(one, target=target)
    beside = made(one, *[conversation(2, 20, first=60 + 30 * i) for i in range(count)], target=target)
    assert torch.equal(alone.features[0], beside.features[0, :8])
    assert torch.equal(alone.final, beside.final[:5])


def test_a_plan_for_an_accelerator_is_wider_and_says_the_same(target: EngineTarget) -> None:
    text = [conversation(2, 4), conversation(3, 8, first=20)]
    narrow, wide = (Plan.of(text, 3, is_aligned=is_aligned) for is_aligned in (False, True))
    assert narrow is not None
    assert wide is not None
    assert narrow.shapes[0] == (2, 11)
    assert wide.shapes[0] == (2, 17)
    one, other = (look(plan, target, (1, 2)) for plan in (narrow, wide))
    assert torch.equal(one.tokens, other.tokens[:, :11])
    assert not other.tokens[:, 11:].any()
    assert torch.equal(one.anchors, other.anchors)
    assert torch.equal(one.final, other.final)
    for a, b in zip(one.depths, other.depths, strict=True):
        assert torch.equal(a.rows, b.rows)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.tokens, b.tokens)
