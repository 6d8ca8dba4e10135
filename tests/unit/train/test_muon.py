from __future__ import annotations

import pytest
import torch

from outpace.train.muon import Muon, _alike, orthogonalise


@pytest.mark.parametrize("shape", [(8, 8), (6, 40), (40, 6)])
def test_a_step_keeps_the_directions_and_evens_out_their_sizes(shape: tuple[int, int]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, before, v = torch.linalg.svd(x, full_matrices=False)
    y = orthogonalise(x)
    sizes = (u.T @ y @ v.T).diagonal()
    assert float(before.max() / before.min()) > 1.5
    assert 0.5 < float(sizes.min()) <= float(sizes.max()) < 1.3
    assert torch.allclose(u.T @ y @ v.T, torch.diag(sizes), atol=1e-4)


def test_it_takes_the_steps_of_pytorchs_own() -> None:
    """That one iterates in bfloat16: steps agree to 2 %."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(12, 20, generator=generator)
    mine, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    ours = Muon([mine], lr=0.02, momentum=0.9, weight_decay=0.1)
    other = torch.optim.Muon([theirs], lr=0.02, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        grad = torch.randn(12, 20, generator=generator)
        mine.grad, theirs.grad = grad.clone(), grad.clone()
        ours.step()
        other.step()
    moved = theirs.detach() - start
    assert float((mine.detach() - theirs.detach()).norm() / moved.norm()) < 0.02


def test_matrices_of_one_shape_are_made_orthogonal_together() -> None:
    """As an accelerator does it: a stack of matrices is each of them alone."""
    x = torch.randn(5, 6, 4, generator=torch.Generator().manual_seed(2))
    for one, alone in zip(orthogonalise(x), x, strict=True):
        assert torch.allclose(one, orthogonalise(alone), atol=1e-5)
    parameters = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in ((2, 3), (3, 2), (2, 3))]
    assert [len(group) for group in _alike(parameters)] == [2, 1]


def test_weight_decay_is_decoupled_and_what_has_no_gradient_stays() -> None:
    still, moved = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2, 2))
    moved.grad = torch.zeros(2, 2)
    Muon([still, moved], lr=0.5, weight_decay=0.2).step()
    assert torch.equal(still, torch.ones(2, 2))
    assert torch.allclose(moved, torch.full((2, 2), 0.9))
