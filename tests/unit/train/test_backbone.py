from __future__ import annotations

from pathlib import Path

import pytest
import torch

from outpace.train.backbone import Frozen
from outpace.train.batch import Plan, make_batch
from outpace.train.build import fresh_network
from outpace.train.losses import draft_loss, target_probs
from outpace.train.settings import TrainSettings
from outpace.train.target import EngineTarget
from outpace.train.text.corpus import Conversation


@pytest.mark.parametrize("kind", ["eagle", "medusa"])
def test_over_a_frozen_target_the_drafts_loss_is_all(target: EngineTarget, text: list[Conversation], kind: str) -> None:
    network = fresh_network(kind, target, text[:8], TrainSettings(steps=1, head_rows=100, num_fixed=50))
    heads = torch.tensor(network.head_tokens)
    plan = Plan.of(text[:4], network.num_depths)
    batch = make_batch(text[:4], target, network.taps, network.num_depths)
    assert plan is not None
    assert batch is not None
    found = Frozen(target).losses(network, plan, heads, torch.float32, 0.5)
    expected = draft_loss(network, batch, target_probs(target, batch.final, heads, torch.float32), heads)
    assert torch.equal(found.total, expected.total)
    assert found.num_learned == batch.num_learned
    assert found.divergence is None


def test_a_frozen_target_has_nothing_to_learn_to_keep_or_to_write(target: EngineTarget, tmp_path: Path) -> None:
    own = Frozen(target)
    assert own.made_with() == own.state() == {}
    assert own.parameters() == own.optimisers() == []
    assert own.write(tmp_path / "drafter.gguf", "Q8_0") is target.identity
    assert own.divergence([]) is None
    assert not list(tmp_path.iterdir())
