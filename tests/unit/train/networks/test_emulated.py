from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import outpace
from outpace.models.checkpoint import open_checkpoint
from outpace.train.networks.emulated import EmulatedNetwork, Kept, rounded
from outpace.train.target import EngineTarget
from tests.training import tiny_lm

CPU = torch.device("cpu")


def test_activations_are_integers_of_8_bits_times_a_scale_for_each_group_of_32() -> None:
    x = torch.zeros(2, 64)
    x[0, 0], x[0, 1], x[0, 2] = 127.0, 2.5, -3.4
    x[0, 32:] = torch.linspace(-0.5, 0.5, 32)
    found = rounded(x, torch.float32)
    assert found[0, :3].tolist() == [127.0, 2.0, -3.0], "ties go to even"
    steps = found[0, 32:] / (0.5 / 127)
    assert torch.allclose(steps, steps.round(), atol=1e-4)
    assert (found[0, 32:] - x[0, 32:]).abs().max() <= 0.5 / 127 / 2 + 1e-7
    assert not found[1].any(), "nothing but zeros has no scale"


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_quantised_weights_are_multiplied_as_the_native_kernels_do(model_type: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    whole = tiny_lm(tmp_path, model_type, ops="reference", spread=1.0, **sizes)
    outpace.quantize(whole.path, tmp_path / "small.gguf", "q8_0")
    lm = outpace.load(tmp_path / "small.gguf", ops="native", kv="f32", threads=1)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, lm.config.vocab_size, 60).astype(np.int32)
    tap = lm.config.num_layers + 1
    (expected,) = EngineTarget(lm).states([tokens], (tap,))[tap]
    off = {}
    for rounds in (False, True):
        network = EmulatedNetwork(
            lm.config,
            open_checkpoint(lm.path).tensors,
            device=CPU,
            rounds=rounds,
            keeps=torch.float32,
        )
        found = network(torch.from_numpy(tokens.astype(np.int64))[None], (tap,))[tap][0]
        off[rounds] = float((found - expected).norm() / expected.norm())
    assert off[True] < 0.25 * off[False]


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3"])
def test_steps_over_what_is_kept_are_the_pass_over_the_whole_text(model_type: str, tmp_path: Path) -> None:
    """Texts of two lengths; mistral's window is shorter than they are."""
    lm = tiny_lm(tmp_path, model_type, ops="reference", spread=1.0)
    network = EmulatedNetwork(lm.config, open_checkpoint(lm.path).tensors, device=CPU)
    tap, lengths = network.last_tap, (40, 33)
    tokens = torch.randint(0, lm.config.vocab_size, (2, 50), generator=torch.Generator().manual_seed(1))
    kept = Kept(lm.config, 2, 64, torch.float32, CPU)
    network(tokens[:, :40], (tap,), kept)
    whole = network(tokens, (tap,))[tap]
    for i in range(10):
        positions = torch.tensor([length + i for length in lengths])
        found = network.step(tokens.gather(1, positions[:, None])[:, 0], positions, kept, 56)
        expected = whole[torch.arange(2), positions]
        assert torch.allclose(found, expected, atol=1e-4), i
    kept.select(torch.tensor([1]))
    again = network.step(tokens[1:, 43], torch.tensor([43]), kept, 64)
    assert torch.allclose(again, whole[1:, 43], atol=1e-4)


def test_numbers_that_do_not_fit_are_noticed(tmp_path: Path) -> None:
    for spread, dtype, fits in ((1.0, torch.float16, True), (1e6, torch.float16, False), (1e6, torch.bfloat16, True)):
        lm = tiny_lm(tmp_path / f"{spread}", ops="reference", spread=spread)
        tensors = open_checkpoint(lm.path).tensors
        assert EmulatedNetwork(lm.config, tensors, device=CPU, dtype=dtype).is_finite() == fits
