"""Muon (Keller Jordan, 2024; Liu et al., arXiv:2502.16982): momentum whose steps are made orthogonal.

PyTorch has one, but it iterates in bfloat16 whatever the machine: on a CPU without such units a step of the shipped
drafter's matrices takes nine seconds. Here the iteration runs in float32 on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration: steepest at 0, singular values end near 1
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """For matrices only: decoupled weight decay, Nesterov momentum, steps of the size that AdamW's usually have.

    A step moves a matrix [m, n] by lr * 0.2 * sqrt(max(m, n)) * (its orthogonalised momentum), so that learning rates
    that suit AdamW suit it too (arXiv:2502.16982, section 2.2).
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for alike in _alike([parameter for parameter in group["params"] if parameter.grad is not None]):
                self._update(alike, group["lr"], group["momentum"], group["weight_decay"])

    def _update(self, parameters: Sequence[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        directions = orthogonalise(torch.stack([self._nesterov(parameter, momentum) for parameter in parameters]))
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.mul_(1 - lr * weight_decay)
            parameter.add_(direction.to(parameter.dtype), alpha=-lr * 0.2 * math.sqrt(max(parameter.shape)))

    def _nesterov(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        grad = parameter.grad
        assert grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(grad, 1 - momentum)
        return torch.lerp(grad, state["momentum"], momentum)


def _alike(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Return the matrices in groups whose steps are computed together.

    On an accelerator those of one shape: there a step is as many kernels as for one of them. On the CPU each is alone.
    """
    groups: dict[Hashable, list[nn.Parameter]] = {}
    for number, parameter in enumerate(parameters):
        on_cpu = parameter.device.type == "cpu"
        groups.setdefault(number if on_cpu else (parameter.shape, parameter.device), []).append(parameter)
    return list(groups.values())


def orthogonalise(x: Tensor) -> Tensor:
    """Return matrices [..., m, n] with their singular vectors, and singular values between 0.7 and 1.2.

    By Newton-Schulz.
    """
    a, b, c = _COEFFICIENTS
    y = x.to(torch.float32 if x.device.type == "cpu" else torch.bfloat16)
    is_tall = y.shape[-2] > y.shape[-1]
    y = y.mT if is_tall else y
    y = y / (y.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram: Tensor = y @ y.mT
        y = a * y + (b * gram + c * (gram @ gram)) @ y
    found: Tensor = y.mT if is_tall else y
    return found
