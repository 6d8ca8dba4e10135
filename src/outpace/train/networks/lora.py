"""Low-rank adapters (LoRA, arXiv:2106.09685): small trainable matrices beside a frozen network's own.

    y = W x + scale * B (A x)

B begins with zeros, so an untrained adapter changes nothing; switched off, the network is the one that it was made of.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MATRICES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


class LoraLinear(nn.Module):
    """A frozen linear map, and what an adapter adds to it while it is on."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        device = linear.weight.device
        bound = 1 / math.sqrt(linear.in_features)
        a = torch.rand(rank, linear.in_features, generator=generator) * (2 * bound) - bound
        self.linear = linear.requires_grad_(False)
        self.lora_a = nn.Parameter(a.to(device))
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank, device=device))
        self.scale, self.is_on = scale, True

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y + self.scale * F.linear(F.linear(x, self.lora_a), self.lora_b) if self.is_on else y

    @property
    def merged(self) -> Tensor:
        """The one matrix that does the same, [out, in] float32."""
        return self.linear.weight.float() + self.scale * (self.lora_b @ self.lora_a).float()


class Adapter:
    """All low-rank matrices of one network, which it has put in the place of its layers' linear maps."""

    def __init__(self, layers: nn.ModuleList, rank: int, alpha: float, generator: torch.Generator) -> None:
        """Wrap every matrix of the layers. alpha / rank: the scale."""
        self.rank, self.scale = rank, alpha / rank
        self._parts: dict[str, LoraLinear] = {}
        for i, layer in enumerate(layers):
            for name in MATRICES:
                owner, _, own = name.rpartition(".")
                part = layer.get_submodule(owner)
                wrapped = LoraLinear(part.get_submodule(own), rank, self.scale, generator)  # type: ignore[arg-type]
                setattr(part, own, wrapped)
                self._parts[f"model.layers.{i}.{name}"] = wrapped

    def __iter__(self) -> Iterator[tuple[str, LoraLinear]]:
        """Yield every wrapped map with its name in the network."""
        return iter(self._parts.items())

    def tensors(self) -> dict[str, nn.Parameter]:
        """Return the trainable matrices, as a file of the adapter names them."""
        pairs = ((f"{name}.{matrix}", getattr(part, matrix)) for name, part in self for matrix in ("lora_a", "lora_b"))
        return dict(pairs)

    @contextmanager
    def off(self) -> Generator[None, None, None]:
        """Leave the network to itself for a while."""
        for part in self._parts.values():
            part.is_on = False
        try:
            yield
        finally:
            for part in self._parts.values():
                part.is_on = True
