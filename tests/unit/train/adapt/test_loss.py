from __future__ import annotations

import math

import pytest
import torch

from outpace.train.adapt import loss as module
from outpace.train.adapt.loss import Teacher, best_tokens, label_loss

WIDE = torch.float64


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=WIDE)


def test_the_loss_of_a_case_that_a_hand_can_compute() -> None:
    """Logits log 1, log 2, log 5 (1/8, 2/8, 5/8); a teacher of 1/2, 1/4, 1/4 counts a quarter, token 1 the rest."""
    matrix = torch.tensor([[math.log(1)], [math.log(2)], [math.log(5)]])
    teacher = Teacher(torch.ones(1, 1), torch.tensor([[math.log(2)], [0.0], [0.0]]))
    loss, choices = label_loss(
        torch.ones(1, 1), matrix, torch.tensor([1]), torch.tensor([3.0]), torch.tensor([0.25]), teacher, torch.float32
    )
    label = [0.25 * 0.5, 0.25 * 0.25 + 0.75, 0.25 * 0.25]
    expected = 3 * (label[0] * math.log(8) + label[1] * math.log(4) + label[2] * math.log(8 / 5))
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    assert choices.tolist() == [2]


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_gradients_are_those_of_finite_differences(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    monkeypatch.setattr(module, "_CHUNK", 3)  # several chunks, the last one not full
    states, matrix = random(7, 4, seed=0).requires_grad_(), random(6, 4, seed=1).requires_grad_()
    tokens = torch.tensor([0, 5, 4, 1, 2, 3, 0])
    weights, soft = random(7, seed=2).abs(), torch.full((7,), share, dtype=WIDE)
    teacher = Teacher(random(7, 3, seed=3), random(6, 3, seed=4))

    def of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return 3 * label_loss(x, y, tokens, weights, soft, teacher, WIDE)[0]

    assert torch.autograd.gradcheck(of, (states, matrix))


def test_it_is_the_cross_entropy_of_the_library() -> None:
    states, matrix, teacher = (
        random(9, 4, seed=0),
        random(6, 4, seed=1),
        Teacher(random(9, 4, seed=2), random(6, 4, seed=3)),
    )
    tokens = torch.arange(9) % 6
    soft = torch.linspace(0, 1, 9, dtype=WIDE)
    probs = torch.softmax(teacher.states @ teacher.unembedding.T, dim=1)
    label = soft[:, None] * probs + (1 - soft[:, None]) * torch.nn.functional.one_hot(tokens, 6)
    expected = torch.nn.functional.cross_entropy(states @ matrix.T, label)
    loss, _ = label_loss(states, matrix, tokens, torch.full((9,), 1 / 9, dtype=WIDE), soft, teacher, WIDE)
    assert torch.allclose(loss, expected)


def test_the_best_tokens_come_with_their_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 2)
    states, matrix = random(5, 4, seed=0).float(), random(6, 4, seed=1).float()
    tokens, probs = best_tokens(states, matrix, torch.float32)
    expected = torch.softmax(states @ matrix.T, dim=1).max(dim=1)
    assert tokens.tolist() == expected.indices.tolist()
    assert torch.allclose(probs, expected.values)
    assert [len(x) for x in best_tokens(states[:0], matrix, torch.float32)] == [0, 0]
