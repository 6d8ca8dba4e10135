"""The target as a PyTorch network, for machines where that is faster than the engine: an accelerator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from outpace.api import LanguageModel
from outpace.errors import UsageError
from outpace.models.checkpoint import open_checkpoint
from outpace.models.config import ModelConfig
from outpace.ops.formats import dequantise
from outpace.train.networks.parts import RotaryTable, heads, rotate
from outpace.train.target import SharedMatrices, Tokens, identity_of, split_by_tokens

_PASS_TOKENS = 32768


class TorchTarget:
    """The dequantised network of a checkpoint, in `dtype` on `device`; the residual stream stays float32."""

    def __init__(
        self, model: LanguageModel, device: torch.device, dtype: torch.dtype = torch.float32, name: str | None = None
    ) -> None:
        if not model.runner.model.is_plain:
            raise UsageError(
                f"{model.name}: a {model.config.model_type} network cannot run in PyTorch yet, only Llama's and its "
                "nearest relatives: train on a machine without an accelerator (device cpu), which runs them all"
            )
        self.config, self.identity, self.device = model.config, identity_of(model, name), device
        checkpoint = open_checkpoint(model.path)
        shared = SharedMatrices.of(checkpoint, model.config.tied, device)
        self.embedding, self.unembedding, self.final_norm = shared.embedding, shared.unembedding, shared.final_norm
        self.inv_freq = torch.tensor(model.config.inv_freq, dtype=torch.float64, device=device)
        self.rope_scale = model.config.rope_scale
        self._rope = RotaryTable(self.inv_freq, self.rope_scale)
        self._layers = [
            _Layer(
                {
                    name.removeprefix(f"model.layers.{i}."): torch.from_numpy(dequantise(tensor).astype(np.float32)).to(
                        device, dtype
                    )
                    for name, tensor in checkpoint.tensors.items()
                    if name.startswith(f"model.layers.{i}.")
                },
                model.config,
                model.config.windows[i],
            )
            for i in range(model.config.num_layers)
        ]
        self._dtype = dtype

    @torch.no_grad()
    def states(self, sequences: Sequence[Tokens], taps: Sequence[int]) -> dict[int, list[Tensor]]:
        found: dict[int, list[Tensor]] = {tap: [] for tap in taps}
        for part in split_by_tokens(sequences, _PASS_TOKENS):
            lengths = [len(tokens) for tokens in part]
            padded = np.zeros((len(part), max(lengths)), np.int64)
            for row, tokens in zip(padded, part, strict=True):
                row[: len(tokens)] = tokens
            for tap, x in self._forward(torch.from_numpy(padded).to(self.device), frozenset(taps)).items():
                found[tap] += [row[:length] for row, length in zip(x, lengths, strict=True)]
        return found

    def _forward(self, tokens: Tensor, taps: frozenset[int]) -> dict[int, Tensor]:
        """Return the states [B, T, D] of padded sequences; what stands behind a sequence's end is no number to use."""
        positions = torch.arange(tokens.shape[1], device=self.device)
        cos_sin = self._rope(positions)
        x = self.embedding[tokens]
        hidden = {0: x} if 0 in taps else {}
        for i, layer in enumerate(self._layers, 1):
            x = layer(x, cos_sin, self._dtype)
            if i in taps:
                hidden[i] = x
        last = len(self._layers) + 1
        if last in taps:
            hidden[last] = F.rms_norm(x, x.shape[-1:], self.final_norm, self.config.eps)
        return hidden


class _Layer:
    """One pre-norm decoder layer; biases and head norms where the checkpoint has them."""

    def __init__(self, weights: Mapping[str, Tensor], config: ModelConfig, window: int | None) -> None:
        self._weights, self._config, self._window = weights, config, window

    def __call__(self, x: Tensor, cos_sin: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
        """Return the layer's output for a residual stream [B, T, D]."""
        x = x + self._attend(self._norm(x, "input_layernorm.weight").to(dtype), cos_sin).float()
        h = self._norm(x, "post_attention_layernorm.weight").to(dtype)
        gate, up = self._linear(h, "mlp.gate_proj"), self._linear(h, "mlp.up_proj")
        return x + self._linear(F.silu(gate) * up, "mlp.down_proj").float()

    def _attend(self, h: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
        config = self._config
        q, k, v = (heads(self._linear(h, f"self_attn.{name}_proj"), config.head_width) for name in ("q", "k", "v"))
        if "self_attn.q_norm.weight" in self._weights:
            q, k = self._norm(q, "self_attn.q_norm.weight"), self._norm(k, "self_attn.k_norm.weight")
        q, k = rotate(q, *cos_sin), rotate(k, *cos_sin)
        size = h.shape[1]
        mask = None
        if self._window is not None and self._window < size:
            age = torch.arange(size, device=h.device)[:, None] - torch.arange(size, device=h.device)
            mask = (age >= 0) & (age < self._window)
        attended = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=True,
        )
        return self._linear(attended.transpose(1, 2).flatten(2), "self_attn.o_proj")

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight = self._weights[name]
        return F.rms_norm(x.float(), x.shape[-1:], weight.float(), self._config.eps).to(x.dtype)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias"))
