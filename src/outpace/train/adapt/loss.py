"""The loss of guesses over the whole vocabulary: cross-entropy against the text's token, a distribution, or both.

For a guess with logits z, the text's token y, and a teacher's probabilities p:

    label = soft * p + (1 - soft) * [y]        loss = - sum over v of label[v] log softmax(z)[v]
    d loss / d z = softmax(z) - label
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_CHUNK = 1024  # guesses whose logits exist at once


@dataclass(frozen=True, slots=True)
class Teacher:
    """Whose distributions are learned: final states, a row [n, D] for each guess, and the output matrix [V, D]."""

    states: Tensor
    unembedding: Tensor


class _LabelLoss(torch.autograd.Function):
    """The weighted sum of the losses above, whose gradients are computed at once, chunk by chunk.

    So no more than a chunk's logits ever exist, and none wait for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        unembedding: Tensor,
        tokens: Tensor,
        weights: Tensor,
        soft: Tensor,
        teacher: Teacher | None,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        grad_states = torch.empty_like(states)
        grad_matrix = torch.zeros_like(unembedding) if unembedding.requires_grad else None
        wide = torch.promote_types(dtype, torch.float32)
        loss = torch.zeros((), dtype=wide, device=states.device)
        choices = torch.empty_like(tokens)
        matrix = unembedding.to(dtype)
        teacher_matrix = None if teacher is None else teacher.unembedding.to(dtype)
        for first in range(0, len(states), _CHUNK):
            part = slice(first, first + _CHUNK)
            x, rows = states[part].to(dtype), tokens[part, None]
            log_q = torch.log_softmax((x @ matrix.T).to(wide), dim=1)
            choices[part] = log_q.argmax(dim=1)
            share = soft[part, None].to(wide)
            if teacher is None or teacher_matrix is None:
                label = torch.zeros_like(log_q)
            else:
                label = torch.softmax((teacher.states[part].to(dtype) @ teacher_matrix.T).to(wide), dim=1) * share
            label.scatter_add_(1, rows, 1 - share)
            weight = weights[part, None].to(wide)
            loss -= (label * log_q * weight).sum()
            slope = ((log_q.exp() - label) * weight).to(dtype)
            grad_states[part] = (slope @ matrix).to(states.dtype)
            if grad_matrix is not None:
                grad_matrix += (slope.T @ x).to(grad_matrix.dtype)
        ctx.save_for_backward(grad_states, grad_matrix)
        ctx.mark_non_differentiable(choices)
        return loss, choices

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_states, grad_matrix = ctx.saved_tensors
        slope = grads[0]
        return grad_states * slope, None if grad_matrix is None else grad_matrix * slope, None, None, None, None, None


def label_loss(
    states: Tensor,
    unembedding: Tensor,
    tokens: Tensor,
    weights: Tensor,
    soft: Tensor,
    teacher: Teacher | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of the losses of n guesses, and the token that each of them would choose, [n].

    states: [n, D], what the output matrix [V, D] multiplies. tokens, weights: [n]. soft: [n], the share of the
    teacher's distribution in each label, in [0, 1]; all 0 where there is no teacher. Products are computed in `dtype`.
    """
    loss, choices = _LabelLoss.apply(  # type: ignore[no-untyped-call]
        states, unembedding, tokens, weights, soft, teacher, dtype
    )
    return loss, choices


@torch.no_grad()
def best_tokens(states: Tensor, unembedding: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the most probable token of each row of final states [n, D], and its probability, both [n]."""
    matrix = unembedding.to(dtype)
    found = [
        torch.softmax((x @ matrix.T).float(), dim=1).max(dim=1) for x in torch.split(states.to(dtype), _CHUNK)
    ] or [torch.zeros(0, 1, device=states.device).max(dim=1)]
    return torch.cat([own.indices for own in found]), torch.cat([own.values for own in found])
