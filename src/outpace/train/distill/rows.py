"""The mean divergence over many positions, a few at a time: the logits of all of them would not fit into memory.

Each chunk's gradient is taken as soon as its logits are there, and only sums are kept: memory for `chunk` rows of V
logits, and no second pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Teacher(Protocol):
    """The teacher's distribution at P positions."""

    def rows(self, start: int, stop: int) -> Callable[[Tensor], Tensor]:
        """Return the loss of positions [start, stop): a function of the student's logits there, [n, V] -> [n]."""


CHUNK = 4096


def mean_divergence(states: Tensor, unembedding: Tensor, teacher: Teacher, chunk: int = CHUNK) -> Tensor:
    """Return the mean loss over a student's final states [P, D], a scalar with a gradient.

    unembedding: [V, D]; it gets a gradient too, where it wants one. The product runs in the type that autocast says.
    """
    found: Tensor = _Mean.apply(states, unembedding, teacher, chunk)  # type: ignore[no-untyped-call]
    return found


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, unembedding: Tensor, teacher: Teacher, chunk: int) -> Tensor:
        count = states.shape[0]
        total = torch.zeros((), device=states.device)
        gradient = torch.empty_like(states)
        matrix = unembedding.detach().requires_grad_(unembedding.requires_grad)
        matrix_gradient = torch.zeros_like(matrix) if matrix.requires_grad else None
        for start in range(0, count, chunk):
            stop = min(start + chunk, count)
            own = states[start:stop].detach().requires_grad_()
            with torch.enable_grad():
                loss = teacher.rows(start, stop)(F.linear(own, matrix)).sum() / count
            wanted = [own] if matrix_gradient is None else [own, matrix]
            gradients = torch.autograd.grad(loss, wanted)
            gradient[start:stop] = gradients[0]
            if matrix_gradient is not None:
                matrix_gradient += gradients[1]
            total += loss.detach()
        ctx.save_for_backward(gradient, *([] if matrix_gradient is None else [matrix_gradient]))
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        gradient, *rest = ctx.saved_tensors
        return outer[0] * gradient, outer[0] * rest[0] if rest else None, None, None
