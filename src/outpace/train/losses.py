"""The loss: cross-entropy of a reduced head against the target's full distribution, summed over the head's rows.

For a guess with target probabilities p (over all V tokens) and head logits z (over the R tokens that it knows):

    loss = - sum over r of p[r] log softmax(z)[r]        d loss / d z = softmax(z) * sum(p) - p

The mass of tokens that the head does not know is left out: it can be lowered by no row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from outpace.train.batch import Batch
from outpace.train.networks.network import DraftNetwork
from outpace.train.target import FrozenTarget

_CHUNK, _CHUNK_ACCELERATED = 1024, 4096  # rows whose logits exist at once: few kernels, where starting one takes time


def chunk_of(device: torch.device) -> int:
    """Return how many rows' logits exist at once."""
    return _CHUNK if device.type == "cpu" else _CHUNK_ACCELERATED


@torch.no_grad()
def target_probs(target: FrozenTarget, final: Tensor, head_tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the target's probabilities of the head's tokens, [P, R], from its final states [P, D].

    The softmax runs over all V tokens, inside in float32; products and result are in `dtype`.
    """
    rows = []
    matrix, scale, cap = target.unembedding.to(dtype), target.config.logit_scale, target.config.logit_cap
    for x in torch.split(final.to(dtype), chunk_of(final.device)):
        logits = x @ matrix.T
        if scale != 1 or cap is not None:
            logits = logits.float() * scale
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        rows.append(torch.softmax(logits, dim=1).index_select(1, head_tokens).to(dtype))
    return torch.cat(rows)


class _HeadLoss(torch.autograd.Function):
    """The sum of the losses above over n guesses, whose gradients are computed at once, chunk by chunk.

    So no more than a chunk's logits [n, R] ever exist, and none wait for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, head: Tensor, probs: Tensor, labels: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(states.device.type, enabled=False):
            return _HeadLoss._computed(ctx, states, head, probs, labels, scale)

    @staticmethod
    def _computed(
        ctx: Any, states: Tensor, head: Tensor, probs: Tensor, labels: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Compute loss and gradients. In lower precision all that is as large as the logits stays in it."""
        wide = torch.promote_types(states.dtype, torch.float32)
        grad_states = torch.empty(states.shape, dtype=wide, device=states.device)
        grad_head = torch.zeros_like(head) if head.requires_grad else None
        found = states.to(probs.dtype)
        matrix, mass = head.to(probs.dtype), probs.sum(dim=1, dtype=wide).index_select(0, labels)
        choices = torch.empty(len(states), dtype=torch.int64, device=states.device)
        largest, share = (torch.empty(len(states), dtype=probs.dtype, device=states.device) for _ in range(2))
        covered = torch.empty(len(states), dtype=wide, device=states.device)  # sum of p times logits
        chunk = chunk_of(states.device)
        for first in range(0, len(states), chunk):
            part = slice(first, first + chunk)
            logits = found[part] @ matrix.T
            p = probs.index_select(0, labels[part])
            torch.max(logits, dim=1, out=(largest[part], choices[part]))
            slope = torch.softmax(logits, dim=1)
            torch.amax(slope, dim=1, out=share[part])
            torch.sum(logits.mul_(p), dim=1, dtype=wide, out=covered[part])
            slope.mul_(mass[part, None]).sub_(p)
            torch.mul(slope @ matrix, scale, out=grad_states[part])
            if grad_head is not None:
                grad_head.add_(slope.T @ found[part], alpha=scale)
        # log softmax(z) = z - log_total, and the softmax of the largest logit tells the latter.
        log_total = largest.to(wide) - share.to(wide).log()
        ctx.save_for_backward(grad_states.to(states.dtype), grad_head)
        ctx.mark_non_differentiable(choices)
        return (mass * log_total - covered).sum() * scale, choices

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_states, grad_head = ctx.saved_tensors
        slope = grads[0]
        return grad_states * slope, None if grad_head is None else grad_head * slope, None, None, None


def head_loss(states: Tensor, head: Tensor, probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean loss of n guesses, and the row of the head that each of them would choose, [n].

    states: [n, D], what the head [R, D] multiplies. probs: [P, R] (`target_probs`); labels: [n], rows of it.
    Products are computed in the dtype of `probs`.
    """
    loss, choices = _HeadLoss.apply(states, head, probs, labels, 1 / len(states))  # type: ignore[no-untyped-call]
    return loss, choices


@dataclass(frozen=True, slots=True)
class Losses:
    """A step's loss, and what goes into it: for each depth, the mean loss and how often the text's token was first."""

    total: Tensor
    by_depth: Sequence[Tensor]
    accuracy: Sequence[Tensor]

    @property
    def parts(self) -> dict[str, Tensor]:
        """What the log tells of them, a vector of one entry a depth each."""
        return {"loss_by_depth": torch.stack([*self.by_depth]), "accuracy_by_depth": torch.stack([*self.accuracy])}


def draft_loss(network: DraftNetwork, batch: Batch, probs: Tensor, head_tokens: Tensor) -> Losses:
    """Return the loss of a batch: the depths' means, each weighted by decay^(depth - 1)."""
    total = torch.zeros((), device=batch.final.device)
    by_depth, accuracy = [], []
    for k, (states, depth) in enumerate(
        zip(network.states(batch, network.num_depths), batch.depths[: network.num_depths], strict=True)
    ):
        if not len(depth.rows):
            continue  # no conversation is as long as that
        loss, choices = head_loss(states.flatten(0, 1).index_select(0, depth.rows), network.head, probs, depth.labels)
        total = total + network.decay**k * loss
        by_depth.append(loss.detach())
        accuracy.append((head_tokens[choices] == depth.tokens).float().mean())
    return Losses(total, by_depth, accuracy)
