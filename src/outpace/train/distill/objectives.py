"""How far a student's next-token distribution q is from its teacher's p, and what is learned by making it smaller.

    fkl    KL(p || q)           covers all that the teacher might say (Hinton et al., arXiv:1503.02531)
    rkl    KL(q || p)           says nothing that the teacher would not (MiniLLM, arXiv:2306.08543)
    tvd    sum |p - q| / 2      1 minus the rate at which drafts of q are accepted (DistillSpec, arXiv:2310.08461)
    jsd    b KL(p || m) + (1 - b) KL(q || m),  m = b p + (1 - b) q,  b = 1/2   (GKD, arXiv:2306.13649, equation 1)

All are functions of log-probabilities over the same outcomes: every token, or the teacher's most likely ones and one
outcome more for all the others (`with_rest`). By the data processing inequality the second is never the larger one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Divergence = Callable[[Tensor, Tensor], Tensor]

_BETA = 0.5  # of jsd
_LEAST = -80.0  # log-probability of what has none left: its exponential is still a number


def forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(p || q) of log-probabilities [..., outcomes]."""
    return (teacher.exp() * (teacher - student)).sum(dim=-1)


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(q || p)."""
    return (student.exp() * (student - teacher)).sum(dim=-1)


def total_variation(student: Tensor, teacher: Tensor) -> Tensor:
    """Return half the sum of all differences."""
    return (student.exp() - teacher.exp()).abs().sum(dim=-1) / 2


def jensen_shannon(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the generalised Jensen-Shannon divergence."""
    mixed = torch.logaddexp(teacher + math.log(_BETA), student + math.log(1 - _BETA))
    return _BETA * forward_kl(mixed, teacher) + (1 - _BETA) * forward_kl(mixed, student)


DIVERGENCES: Mapping[str, Divergence] = {
    "fkl": forward_kl,
    "rkl": reverse_kl,
    "tvd": total_variation,
    "jsd": jensen_shannon,
}


def with_rest(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the log-probabilities of some tokens [..., k] and of all others together, [..., k + 1].

    logits: [..., V]. tokens: k different ones in each row.
    """
    total = logits.logsumexp(dim=-1, keepdim=True)
    others = logits.scatter(-1, tokens, float("-inf")).logsumexp(dim=-1, keepdim=True)
    return (torch.cat([logits.gather(-1, tokens), others], dim=-1) - total).clamp(min=_LEAST)


def hidden_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of states [..., D] that were RMS-normalised, in float32, [...]."""
    return (F.rms_norm(student, student.shape[-1:]) - F.rms_norm(teacher, teacher.shape[-1:])).square().mean(dim=-1)
