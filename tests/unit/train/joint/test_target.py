from __future__ import annotations

from pathlib import Path

import pytest
import torch

from outpace.errors import UsageError
from outpace.train.joint.target import TrainableTarget
from outpace.train.target import EngineTarget
from tests.training import tiny_lm, written_by


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2"])
def test_it_computes_what_the_engine_computes_in_float(model_type: str, tmp_path: Path) -> None:
    lm = tiny_lm(tmp_path, model_type, ops="reference", kv="f32", spread=1.0)
    engine, target = EngineTarget(lm), TrainableTarget(lm, torch.device("cpu"))
    sequences = [own.tokens for own in written_by(lm, 4, 40)]
    taps = tuple(range(lm.config.num_layers + 2))
    expected, found = engine.states(sequences, taps), target.states(sequences, taps)
    for tap in taps:
        for x, y in zip(expected[tap], found[tap], strict=True):
            assert torch.allclose(x, y, atol=2e-4, rtol=1e-3), tap
    assert engine.identity == target.identity


def test_a_network_without_gradients_here_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a granite network cannot run in PyTorch yet"):
        TrainableTarget(tiny_lm(tmp_path, "granite", ops="reference"), torch.device("cpu"))
