from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from outpace.train.distill.objectives import forward_kl
from outpace.train.distill.rows import mean_divergence


class Fixed:
    """A teacher whose logits are given."""

    def __init__(self, logits: Tensor) -> None:
        self.logprobs, self.asked = logits.log_softmax(-1), [0]

    def rows(self, start: int, stop: int) -> Callable[[Tensor], Tensor]:
        self.asked.append(stop - start)
        return lambda logits: forward_kl(logits.log_softmax(-1), self.logprobs[start:stop])


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("trained", [False, True])
def test_chunks_give_the_mean_and_its_gradients(chunk: int, trained: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(7, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    matrix = torch.randn(11, 5, generator=generator, dtype=torch.float64, requires_grad=trained)
    teacher = Fixed(torch.randn(7, 11, generator=generator, dtype=torch.float64))
    wanted = [states, matrix] if trained else [states]
    expected = forward_kl((states @ matrix.T).log_softmax(-1), teacher.logprobs).mean()
    gradients = torch.autograd.grad(3 * expected, wanted)
    found = mean_divergence(states, matrix, teacher, chunk)
    assert float(found.detach()) == pytest.approx(float(expected.detach()))
    for x, y in zip(torch.autograd.grad(3 * found, wanted), gradients, strict=True):
        assert torch.allclose(x, y)
    assert max(teacher.asked) == min(chunk, 7)
