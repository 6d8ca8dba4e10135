from __future__ import annotations

from pathlib import Path

import pytest
import torch

from outpace.errors import UsageError
from outpace.train.joint.target import TrainableTarget
from tests.training import assert_same_states, tiny_lm


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2"])
def test_it_computes_what_the_engine_computes_in_float(model_type: str, tmp_path: Path) -> None:
    lm = tiny_lm(tmp_path, model_type, ops="reference", kv="f32", spread=1.0)
    assert_same_states(lm, TrainableTarget(lm, torch.device("cpu")))


def test_a_network_without_gradients_here_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a granite network cannot run in PyTorch yet"):
        TrainableTarget(tiny_lm(tmp_path, "granite", ops="reference"), torch.device("cpu"))
