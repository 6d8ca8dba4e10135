"""A target whose matrices an adapter can wrap: the dequantised network in PyTorch, with gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from outpace.api import LanguageModel
from outpace.models.checkpoint import open_checkpoint
from outpace.train.networks.transformer import Dequantised, TransformerNetwork
from outpace.train.target import Tokens, identity_of
from outpace.train.torch_target import check_supported, states_of


class TrainableTarget:
    """A checkpoint's network in `dtype` on `device`; the residual stream stays float32.

    It does not round activations as the engine's native kernels do: rounding has no gradient.
    """

    def __init__(
        self, model: LanguageModel, device: torch.device, dtype: torch.dtype = torch.float32, name: str | None = None
    ) -> None:
        """Raise UsageError for a network that does not run in PyTorch."""
        check_supported(model)
        self.config, self.identity, self.device = model.config, identity_of(model, name), device
        tensors = Dequantised(open_checkpoint(model.path).tensors)
        self.network = TransformerNetwork.of(model.config, tensors, device=device, dtype=dtype).requires_grad_(False)
        self.embedding: Tensor = self.network.model.embed_tokens.weight
        self.unembedding = self.network.unembedding
        self.final_norm: Tensor = self.network.model.norm.weight
        self.inv_freq = torch.tensor(model.config.inv_freq, dtype=torch.float64, device=device)
        self.rope_scale = model.config.rope_scale

    @torch.no_grad()
    def states(self, sequences: Sequence[Tokens], taps: Sequence[int]) -> dict[int, list[Tensor]]:
        return states_of(self._run, self.device, sequences, taps)

    @torch.no_grad()
    def padded(self, tokens: Tensor, lengths: Sequence[int], taps: Sequence[int]) -> dict[int, Tensor]:
        return self._run(tokens, taps)

    def _run(self, tokens: Tensor, taps: Sequence[int]) -> dict[int, Tensor]:
        found: dict[int, Tensor] = self.network(tokens, taps=taps)
        return found
