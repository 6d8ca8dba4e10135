from __future__ import annotations

from pathlib import Path

import pytest
import torch

from outpace.errors import UsageError
from outpace.train.target import EngineTarget
from outpace.train.torch_target import TorchTarget
from tests.training import assert_same_states, tiny_lm, written_by


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "phi3"])
def test_it_computes_what_the_engine_computes(model_type: str, tmp_path: Path) -> None:
    """On the reference ops both are float32; mistral's window of 24 is shorter than the texts."""
    lm = tiny_lm(tmp_path, model_type, ops="reference", kv="f32", spread=1.0)
    engine, network = EngineTarget(lm), TorchTarget(lm, torch.device("cpu"))
    assert_same_states(lm, network)
    for name in ("embedding", "unembedding", "final_norm", "inv_freq"):
        assert torch.equal(getattr(engine, name), getattr(network, name))


@pytest.mark.parametrize("model_type", ["granite", "glm4", "smollm3", "olmo2"])
def test_a_network_that_it_would_compute_wrongly_is_refused(model_type: str, tmp_path: Path) -> None:
    lm = tiny_lm(tmp_path, model_type, ops="reference")
    with pytest.raises(UsageError, match=f"a {model_type} network cannot run in PyTorch yet"):
        TorchTarget(lm, torch.device("cpu"))


def test_lower_precision_is_close(tmp_path: Path) -> None:
    lm = tiny_lm(tmp_path, ops="reference")
    sequences = [own.tokens for own in written_by(lm, 2, 20)]
    exact = TorchTarget(lm, torch.device("cpu")).states(sequences, (2,))[2]
    rough = TorchTarget(lm, torch.device("cpu"), torch.bfloat16).states(sequences, (2,))[2]
    for x, y in zip(exact, rough, strict=True):
        assert y.dtype == torch.float32
        assert torch.cosine_similarity(x, y, dim=-1).min() > 0.999
        assert not torch.equal(x, y)
