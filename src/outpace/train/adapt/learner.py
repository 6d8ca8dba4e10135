"""What is adapted: a network with a trainable adapter beside frozen weights, or one whose weights all learn."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from outpace.models.config import ModelConfig
from outpace.train.adapt.blocks import Blocks
from outpace.train.adapt.passes import Clean, block_pass, clean_pass
from outpace.train.adapt.settings import AdaptSettings
from outpace.train.networks.lora import Adapter
from outpace.train.networks.transformer import TransformerNetwork


class Learner:
    """A network that learns, and the original that it was made of.

    adapter: None where all weights learn; then the original is a copy of its own. mask: [D], the embedding of a masked
    slot, of an adapter for diffusion; else `mask_token` says whose row it is.
    """

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, Tensor],
        settings: AdaptSettings,
        device: torch.device,
        mask_token: int,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Take a model's numbers. mask_token: vocab_size where a vector of its own stands for a masked slot.

        dtype: of products (None: float32 on the CPU, bfloat16 elsewhere).
        """
        compute = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
        frozen = TransformerNetwork.of(config, tensors, device=device, dtype=compute).requires_grad_(False)
        self.device, self.mask_token, self.original_network = device, mask_token, frozen
        self.adapter: Adapter | None = None
        self.mask: nn.Parameter | None = None
        if settings.weights == "full":
            self.network = TransformerNetwork.of(config, tensors, device=device, compute=compute)
            self._parameters = dict(self.network.named_parameters())
            return
        self.network = frozen
        generator = torch.Generator().manual_seed(settings.seed)
        self.adapter = Adapter(frozen.model.layers, settings.rank, settings.alpha, generator)
        self._parameters = self.adapter.tensors()
        if settings.kind == "diffusion":
            self.mask = nn.Parameter(frozen.model.embed_tokens.weight.float().mean(dim=0))
            self._parameters["mask_embedding"] = self.mask

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What learns, by the names of the result's file."""
        return self._parameters

    @property
    def dtype(self) -> torch.dtype:
        """In which the products are computed."""
        return self.network.compute

    def state(self) -> dict[str, Tensor]:
        """Return what has been learned, for a checkpoint."""
        return {name: own.detach() for name, own in self._parameters.items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint's state."""
        for name, own in self._parameters.items():
            own.copy_(state[name])

    def embedded(self, tokens: Tensor, is_masked: Tensor | None = None) -> Tensor:
        """Return the inputs of rows, [S, R, D]: of tokens [S, R], those that are masked replaced."""
        rows = (
            tokens if is_masked is None else tokens.masked_fill(is_masked, self.mask_token if self.mask is None else 0)
        )
        found: Tensor = self.network.model.embed_tokens(rows).float()
        if is_masked is None or self.mask is None:
            return found
        return torch.where(is_masked[..., None], self.mask, found)

    @torch.no_grad()
    def original(self, tokens: Tensor) -> Clean:
        """Return what the original makes of texts [S, T]."""
        with nullcontext() if self.adapter is None else self.adapter.off():
            return clean_pass(self.original_network, tokens)

    def clean(self, tokens: Tensor) -> Clean:
        """Return what the network makes of texts [S, T] as it has learned so far."""
        return clean_pass(self.network, tokens)

    def rows(self, blocks: Blocks, embedded: Tensor, clean: Clean, *, is_causal: bool) -> Tensor:
        """Return the final states of the rows of blocks, [S, R, D]."""
        return block_pass(self.network, blocks, embedded, clean, is_causal=is_causal)

    @torch.no_grad()
    def original_rows(self, blocks: Blocks, tokens: Tensor, clean: Clean) -> Tensor:
        """Return what the original makes of rows that hold tokens [S, R] and see no later row, [S, R, D]."""
        network = self.original_network
        with nullcontext() if self.adapter is None else self.adapter.off():
            return block_pass(network, blocks, network.model.embed_tokens(tokens).float(), clean, is_causal=True)
