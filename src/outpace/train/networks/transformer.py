"""A model's own network with gradients: Llama's and its nearest relatives', under the names of their folders.

What `outpace.models.transformer` runs on ops, this runs in PyTorch: whole sequences at once, and nothing cached. Every
matrix is an `nn.Linear`, so an adapter replaces one by wrapping it; `state_dict` is a folder's safetensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from outpace.errors import UsageError
from outpace.models.architecture import architectures
from outpace.models.config import ModelConfig
from outpace.ops.formats import dequantise
from outpace.train.networks.parts import RotaryTable, heads, rotate
from outpace.types import RawTensor

_MATRICES = {"wq", "wk", "wv", "wo", "gate", "up", "down"}
_VECTORS = {"attn_norm", "mlp_norm", "q_norm", "k_norm", "bq", "bk", "bv", "bo", "gate_bias", "up_bias", "down_bias"}


def is_supported(config: ModelConfig) -> bool:
    """Whether this network is the one that a config describes: norms before both halves, one rope, no scales."""
    places = set(architectures()[config.model_type].layer(config))
    scales = (config.embedding_scale, config.residual_scale, config.logit_scale)
    has_one_rope = not config.rotations and config.rotary_width == config.head_width
    has_numbers = (
        scales == (1.0, 1.0, 1.0) and config.logit_cap is config.attention_scale is None and config.query_growth is None
    )
    has_parts = {"attn_norm", "mlp_norm"} | _MATRICES <= places <= _MATRICES | _VECTORS
    is_dense = config.experts is None
    return has_one_rope and has_numbers and has_parts and is_dense and config.activation == "silu"


class TransformerNetwork(nn.Module):
    """A decoder network whose matrices can be trained.

    compute: the type in which the layers multiply (bfloat16: by autocast); the residual stream and all norms are
    float32 whatever it is. is_checkpointed: whether layers keep no activations for the backward pass, but run twice.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        compute: torch.dtype | None = None,
        is_checkpointed: bool = False,
    ) -> None:
        """Make a network without numbers. dtype: of the layers' matrices; everything else is float32.

        compute: None for `dtype`. Raises UsageError for a network of another kind.
        """
        super().__init__()
        if not is_supported(config):
            raise UsageError(
                f"a {config.model_type} network cannot run in PyTorch yet, only Llama's and its nearest relatives"
            )
        self.config, self.compute, self.is_checkpointed = config, compute or dtype, is_checkpointed
        with torch.device("meta"):
            self.model = _Stack(config, dtype)
            self.lm_head = None if config.tied else nn.Linear(config.width, config.vocab_size, bias=False)
        self.to_empty(device=device or torch.device("cpu"))
        self._ropes: dict[torch.device, RotaryTable] = {}

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        tensors: Mapping[str, Tensor],
        *,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        compute: torch.dtype | None = None,
        is_checkpointed: bool = False,
    ) -> TransformerNetwork:
        """Return the network with a copy of these numbers: a checkpoint's (`Dequantised`), or a network's state.

        Raises UsageError for a tensor that is missing, of another shape, or that the network has no place for.
        """
        network = cls(config, device=device, dtype=dtype, compute=compute, is_checkpointed=is_checkpointed)
        places = dict(network.named_parameters())
        if places.keys() != tensors.keys():
            wrong = sorted(places.keys() ^ tensors.keys())
            raise UsageError(f"a {config.model_type} network with this config has other tensors: {wrong[0]!r} differs")
        with torch.no_grad():
            for name, place in places.items():
                if place.shape != tensors[name].shape:
                    raise UsageError(f"{name} must be {list(place.shape)}, is {list(tensors[name].shape)}")
                place.copy_(tensors[name])
        return network

    @property
    def last_tap(self) -> int:
        """The tap of the final norm's output, which the logits are made of."""
        return self.config.num_layers + 1

    @property
    def unembedding(self) -> Tensor:
        """The output matrix, [V, D]; a tied one is the embedding."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        taps: Sequence[int] | None = None,
        memory: Memory | None = None,
    ) -> dict[int, Tensor]:
        """Return the hidden states of sequences [B, T] at each tap, [B, T, D] float32.

        Taps as in `outpace.models.Transformer.forward`: 0 is the embedding, i the output of the i-th layer, n + 1 the
        final norm's (None: that one alone). positions: [T] or [B, T]; None: 0 ... T - 1.
        mask: bool, [T, T] or [B, 1, T, T], True where a query (row) sees a key; None: itself and all before it. A
        layer's window, where it has one, hides what is further back than that in either case.
        memory: keys and values of earlier calls, which tokens see by their positions, [B, T]; theirs are added to it.
        It takes no mask. Layers above the last tap are not run.
        """
        wanted = (self.last_tap,) if taps is None else tuple(taps)
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
        with torch.autocast(tokens.device.type, self.compute, enabled=self.compute != torch.float32):
            return self._states(tokens, positions, mask, frozenset(wanted), memory)

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits [..., V] of final states [..., D], in the type that the layers multiply in."""
        with torch.autocast(states.device.type, self.compute, enabled=self.compute != torch.float32):
            return F.linear(states, self.unembedding)

    def _states(
        self, tokens: Tensor, positions: Tensor, mask: Tensor | None, taps: frozenset[int], memory: Memory | None
    ) -> dict[int, Tensor]:
        cos_sin = self._rope(tokens.device)(positions)
        windows = set(self.config.windows[: max(taps, default=0)])
        masks: dict[int | None, Tensor | None]
        if memory is None:
            masks = {window: _visible(positions, mask, window) for window in windows}
        else:
            assert mask is None
            masks = memory.see(positions, windows)
        x = self.model.embed_tokens(tokens).float()
        states = {0: x} if 0 in taps else {}
        for i, (layer, window) in enumerate(zip(self.model.layers, self.config.windows, strict=True), 1):
            if i > max(taps, default=0):
                break
            if self.is_checkpointed and torch.is_grad_enabled():
                x = checkpoint(layer, x, cos_sin, masks[window], use_reentrant=False)
            else:
                x = layer(x, cos_sin, masks[window], memory)
            if i in taps:
                states[i] = x
        if self.last_tap in taps:
            states[self.last_tap] = self.model.norm(x)
        return states

    def _rope(self, device: torch.device) -> RotaryTable:
        if device not in self._ropes:
            inv_freq = torch.tensor(self.config.inv_freq, dtype=torch.float64, device=device)
            self._ropes[device] = RotaryTable(inv_freq, self.config.rope_scale)
        return self._ropes[device]


class Memory:
    """The keys and values of B sequences so far, by layer, and the positions of their tokens; without gradients.

    A token sees those whose positions are not behind its own, so a place that nobody may see is one with the position
    `NOBODY`: padding behind a prompt, for example.
    """

    NOBODY = 1 << 30

    def __init__(self) -> None:
        self._kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._positions: Tensor | None = None

    def see(self, positions: Tensor, windows: Iterable[int | None]) -> dict[int | None, Tensor | None]:
        """Add the positions of new tokens, [B, T]; return what each of them sees, [B, 1, T, S], by window."""
        own = self._positions
        self._positions = positions if own is None else torch.cat([own, positions], dim=1)
        age = positions[:, None, :, None] - self._positions[:, None, None, :]
        return {window: (age >= 0) if window is None else (age >= 0) & (age < window) for window in windows}

    def extend(self, layer: nn.Module, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add a layer's new keys and values, [B, T, G, K]; return all that there are."""
        if layer in self._kept:
            keys, values = (torch.cat(pair, dim=1) for pair in zip(self._kept[layer], (keys, values), strict=True))
        self._kept[layer] = keys.detach(), values.detach()
        return keys, values


class Dequantised(Mapping[str, Tensor]):
    """The tensors of a checkpoint as float32, each made when it is asked for."""

    def __init__(self, tensors: Mapping[str, RawTensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(dequantise(self._tensors[name]).astype(np.float32))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _visible(positions: Tensor, mask: Tensor | None, window: int | None) -> Tensor | None:
    """Return which keys each query sees, [T, T] or [B, 1, T, T]; None: itself and all before it."""
    if mask is None and (window is None or window >= positions.shape[-1]):
        return None
    age = positions[..., :, None] - positions[..., None, :]
    if age.ndim == 3:
        age = age[:, None]
    if mask is None:
        size = positions.shape[-1]
        mask = torch.ones(size, size, dtype=torch.bool, device=positions.device).tril()
    return mask if window is None else mask & (age < window)


class _Stack(nn.Module):
    """Everything but the output matrix; called `model` in folders."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(_Layer(config, dtype) for _ in range(config.num_layers))
        self.norm = _Norm(config.width, config.eps)


class _Layer(nn.Module):
    """One pre-norm decoder layer; biases and head norms where its architecture has them."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.input_layernorm = _Norm(config.width, config.eps)
        self.self_attn = _Attention(config, dtype)
        self.post_attention_layernorm = _Norm(config.width, config.eps)
        self.mlp = _GatedMLP(config, dtype)

    def forward(
        self, x: Tensor, cos_sin: tuple[Tensor, Tensor], mask: Tensor | None, memory: Memory | None = None
    ) -> Tensor:
        """Return the layer's output for a residual stream [B, T, D]."""
        x = x + self.self_attn(self.input_layernorm(x), cos_sin, mask, memory).float()
        added: Tensor = self.mlp(self.post_attention_layernorm(x)).float()
        return x + added


class _Attention(nn.Module):
    """Attention of grouped heads, each query over the keys that it sees."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        width, head_width = config.width, config.head_width
        own, shared = config.num_heads * head_width, config.num_kv_heads * head_width
        has_norms = "q_norm" in architectures()[config.model_type].layer(config)
        self._head_width = head_width
        self.q_proj = nn.Linear(width, own, config.qkv_bias, dtype=dtype)
        self.k_proj = nn.Linear(width, shared, config.qkv_bias, dtype=dtype)
        self.v_proj = nn.Linear(width, shared, config.qkv_bias, dtype=dtype)
        self.o_proj = nn.Linear(own, width, config.output_bias, dtype=dtype)
        self.q_norm = _Norm(head_width, config.eps) if has_norms else None
        self.k_norm = _Norm(head_width, config.eps) if has_norms else None

    def forward(self, h: Tensor, cos_sin: tuple[Tensor, Tensor], mask: Tensor | None, memory: Memory | None) -> Tensor:
        q, k, v = (heads(project(h), self._head_width) for project in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        q, k = rotate(q, *cos_sin), rotate(k, *cos_sin)
        if memory is not None:
            k, v = memory.extend(self, k, v)
        attended = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=True,
        )
        out: Tensor = self.o_proj(attended.transpose(1, 2).flatten(2))
        return out


class _GatedMLP(nn.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__()
        width, inner = config.width, config.feed_forward_width
        self.gate_proj = nn.Linear(width, inner, config.mlp_bias, dtype=dtype)
        self.up_proj = nn.Linear(width, inner, config.mlp_bias, dtype=dtype)
        self.down_proj = nn.Linear(inner, width, config.mlp_bias, dtype=dtype)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))
        return out


class _Norm(nn.Module):
    """The RMS norm over the last dimension, in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], self.weight, self._eps)
