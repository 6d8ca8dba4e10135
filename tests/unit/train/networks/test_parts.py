from __future__ import annotations

import numpy as np
import pytest
import torch

from outpace.ops.reference import ReferenceOps
from outpace.train.networks.parts import RotaryTable, attend, bias_of, heads, norm, rotate
from tests.tiny import raw_tensor


def test_heads_are_runs_of_a_row() -> None:
    assert heads(torch.arange(12.0).view(2, 6), 3).tolist() == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]


def test_a_turn_by_a_position_is_a_turn_of_each_pair_of_channels() -> None:
    """Channel 0 pairs with 2, 1 with 3; their angles are position * (0.5, 0.25), and the scale stretches them."""
    table = RotaryTable(torch.tensor([0.5, 0.25], dtype=torch.float64), 2.0)
    x = torch.tensor([[[1.0, 0.0, 0.0, 1.0]]])
    found = rotate(x, *table(torch.tensor([3])))
    expected = [2 * np.cos(1.5), -2 * np.sin(0.75), 2 * np.sin(1.5), 2 * np.cos(0.75)]
    assert found.flatten().tolist() == pytest.approx(expected, abs=1e-6)
    still = RotaryTable(torch.tensor([0.5, 0.0], dtype=torch.float64), 2.0)
    assert rotate(x, *still(torch.tensor([3])))[0, 0, [1, 3]].tolist() == [0.0, 1.0]


def test_the_norm_is_that_of_the_ops() -> None:
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    ops = ReferenceOps(threads=1)
    weight = np.linspace(0.5, 2, 8, dtype=np.float32)
    expected = ops.numpy(ops.rms_norm(ops.array(x.numpy()), ops.vector(raw_tensor("w", weight)), 1e-5))
    assert np.allclose(norm(x, torch.from_numpy(weight), 1e-5).numpy(), expected, atol=1e-6)


def test_attention_is_a_softmax_over_what_is_visible_and_ones_own() -> None:
    """Against a loop over sequences, anchors, places and heads; two query heads share each of two key heads."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    q, k, v = random(2, 3, 2, 4, 5), random(2, 6, 2, 5), random(2, 6, 2, 5)
    own_k, own_v = random(2, 3, 3, 2, 5), random(2, 3, 3, 2, 5)
    limits = torch.tensor([[0, 2, 5], [3, 3, 1]])
    sees = torch.rand(2, 3, 2, 3, generator=generator) < 0.5
    for mask in (None, sees):
        found = attend(q, k, v, bias_of(torch.arange(6) <= limits[..., None], q.dtype), own_k, own_v, mask)
        for b, i, m, h in np.ndindex(2, 3, 2, 4):
            end, own = int(limits[b, i]) + 1, slice(None) if mask is None else mask[b, i, m]
            keys = torch.cat([k[b, :end, h // 2], own_k[b, i, own, h // 2]])
            values = torch.cat([v[b, :end, h // 2], own_v[b, i, own, h // 2]])
            expected = torch.softmax(keys @ q[b, i, m, h] / 5**0.5, 0) @ values
            assert torch.allclose(found[b, i, m, 5 * h : 5 * h + 5], expected, atol=1e-5)
