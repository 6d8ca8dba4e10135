"""The target as a PyTorch network, for machines where that is faster than the engine: an accelerator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from outpace.api import LanguageModel
from outpace.errors import UsageError
from outpace.models.checkpoint import open_checkpoint
from outpace.train.networks.emulated import EmulatedNetwork
from outpace.train.networks.transformer import is_supported
from outpace.train.target import Tokens, identity_of, split_by_tokens

_PASS_TOKENS = 32768


class TorchTarget:
    """A checkpoint's network in `dtype` on `device`; the residual stream stays float32.

    rounds: whether it computes as the native kernels do (`EmulatedNetwork`), so that its hidden states are those of
    run time but for last bits, whichever ops this machine has.
    """

    def __init__(
        self,
        model: LanguageModel,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        name: str | None = None,
        *,
        rounds: bool = True,
    ) -> None:
        check_supported(model)
        self.config, self.identity, self.device = model.config, identity_of(model, name), device
        keeps = torch.float32 if model.runner.cache.spec.format == "f32" else torch.bfloat16
        self.network = EmulatedNetwork(
            model.config,
            open_checkpoint(model.path).tensors,
            device=device,
            dtype=dtype,
            rounds=rounds,
            keeps=keeps,
        )
        self.embedding, self.unembedding = self.network.embedding, self.network.unembedding
        self.final_norm = self.network.final_norm
        self.inv_freq = torch.tensor(model.config.inv_freq, dtype=torch.float64, device=device)
        self.rope_scale = model.config.rope_scale

    @torch.no_grad()
    def states(self, sequences: Sequence[Tokens], taps: Sequence[int]) -> dict[int, list[Tensor]]:
        return states_of(self.network, self.device, sequences, taps)

    @torch.no_grad()
    def padded(self, tokens: Tensor, lengths: Sequence[int], taps: Sequence[int]) -> dict[int, Tensor]:
        return self.network(tokens, taps)


def states_of(
    network: Callable[[Tensor, Sequence[int]], dict[int, Tensor]],
    device: torch.device,
    sequences: Sequence[Tokens],
    taps: Sequence[int],
) -> dict[int, list[Tensor]]:
    """Return the hidden states of sequences at each tap, [T, D] of each, from a network that takes tokens [B, T]."""
    found: dict[int, list[Tensor]] = {tap: [] for tap in taps}
    for part in split_by_tokens(sequences, _PASS_TOKENS):
        lengths = [len(tokens) for tokens in part]
        padded = np.zeros((len(part), max(lengths)), np.int64)
        for row, tokens in zip(padded, part, strict=True):
            row[: len(tokens)] = tokens
        for tap, x in network(torch.from_numpy(padded).to(device), taps).items():
            found[tap] += [row[:length] for row, length in zip(x, lengths, strict=True)]
    return found


def check_supported(model: LanguageModel) -> None:
    """Raise UsageError for a model whose network does not run in PyTorch."""
    if not is_supported(model.config):
        raise UsageError(
            f"{model.name}: a {model.config.model_type} network cannot run in PyTorch yet, only Llama's and its "
            "nearest relatives: train on a machine without an accelerator (device cpu), which runs them all"
        )
