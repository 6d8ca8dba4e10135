from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from outpace.train.distill.objectives import DIVERGENCES, hidden_distance, with_rest


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient_by_differences(loss: object, x: Tensor, step: float = 1e-6) -> Tensor:
    found = torch.zeros_like(x)
    for place in np.ndindex(*x.shape):
        up, down = x.clone(), x.clone()
        up[place] += step
        down[place] -= step
        found[place] = (loss(up) - loss(down)) / (2 * step)  # type: ignore[operator]
    return found


@pytest.mark.parametrize("name", list(DIVERGENCES))
@pytest.mark.parametrize("k", [None, 3])
def test_every_gradient_is_that_of_finite_differences(name: str, k: int | None) -> None:
    """With respect to the student's logits: over all tokens, and over three and the rest."""
    logits, teacher = random(4, 9), 2 * random(4, 9, seed=1)
    tokens = teacher.topk(k or 9).indices

    def loss(x: Tensor) -> Tensor:
        if k is None:
            return DIVERGENCES[name](x.log_softmax(-1), teacher.log_softmax(-1)).sum()
        return DIVERGENCES[name](with_rest(x, tokens), with_rest(teacher, tokens)).sum()

    x = logits.clone().requires_grad_()
    loss(x).backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, gradient_by_differences(loss, logits), atol=1e-7)
    assert x.grad.abs().max() > 1e-3


def test_the_gradient_of_hidden_matching_is_that_of_finite_differences() -> None:
    states, teacher = random(3, 5), random(3, 5, seed=1)
    x = states.clone().requires_grad_()
    hidden_distance(x, teacher).sum().backward()
    assert x.grad is not None
    expected = gradient_by_differences(lambda y: hidden_distance(y, teacher).sum(), states)
    assert torch.allclose(x.grad, expected, atol=1e-7)
    assert torch.allclose(hidden_distance(3 * teacher, teacher), torch.zeros(3, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("name", list(DIVERGENCES))
def test_only_equal_distributions_are_no_distance_apart(name: str) -> None:
    p, q = random(5, 9).log_softmax(-1), random(5, 9, seed=1).log_softmax(-1)
    assert DIVERGENCES[name](p, p).abs().max() < 1e-12
    assert DIVERGENCES[name](q, p).min() > 1e-3


def test_divergences_are_those_of_their_definitions() -> None:
    p, q = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64), torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
    own = {name: float(divergence(q.log(), p.log())) for name, divergence in DIVERGENCES.items()}
    ln2, m = float(np.log(2)), np.array([0.375, 0.375, 0.25])
    kl = [float((x.numpy() * np.log(x.numpy() / m)).sum()) for x in (p, q)]
    assert own == pytest.approx({"fkl": 0.25 * ln2, "rkl": 0.25 * ln2, "tvd": 0.25, "jsd": sum(kl) / 2})


def test_what_is_not_among_the_likely_tokens_is_one_outcome() -> None:
    logits = random(6, 9)
    tokens = logits.topk(4).indices
    found = with_rest(logits, tokens).exp()
    probs = logits.softmax(-1)
    assert torch.allclose(found[:, :4], probs.gather(-1, tokens))
    assert torch.allclose(found.sum(-1), torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize("name", list(DIVERGENCES))
def test_fewer_outcomes_never_look_further_apart(name: str) -> None:
    """The data processing inequality; at k = V - 1 the rest is one token, and nothing is lost."""
    student, teacher = random(50, 9), random(50, 9, seed=1)
    whole = DIVERGENCES[name](student.log_softmax(-1), teacher.log_softmax(-1))
    for k in (1, 4, 8):
        tokens = teacher.topk(k).indices
        part = DIVERGENCES[name](with_rest(student, tokens), with_rest(teacher, tokens))
        assert (part <= whole + 1e-9).all()
        assert (k == 8) == torch.allclose(part, whole)


def test_a_rest_without_probability_gives_numbers_all_the_same() -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    found = with_rest(logits, torch.tensor([[0]]))
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
