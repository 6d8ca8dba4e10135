"""A target in PyTorch as the engine's native kernels compute it: activations of 8 bits, keys and values of 16.

A product with quantised weights takes its input as the kernels do (`ops/native/src/matmul/prepare_kernel.h`): in groups
of 32, each 8-bit integers times a scale, largest / 127. What is kept of a text is rounded as the KV cache rounds it.
All else differs in last bits: sums run in another order, and matrices are in the `dtype` of the device's fast products.
Nothing here has gradients; matrices that share an input are one, so that a pass is few kernels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from outpace.models.config import ModelConfig
from outpace.ops.formats import BLOCKS, dequantise
from outpace.train.networks.parts import RotaryTable, heads
from outpace.types import RawTensor

_GROUP = 32
_TOO_SMALL = 1e-30  # 127 / largest must not overflow
_PROBE = 64  # tokens

Turn = tuple[Tensor, Tensor]  # cosines and sines of positions


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return rows [..., in] as products with quantised weights see them, in `dtype`: int8 times a scale, by groups."""
    groups = x.reshape(*x.shape[:-1], -1, _GROUP)
    largest = torch.linalg.vector_norm(groups, math.inf, dim=-1, keepdim=True, dtype=torch.float32)
    inverse = torch.div(torch.tensor(127.0), largest.clamp_min(_TOO_SMALL))
    found: Tensor = (groups * inverse).round_().mul_(largest.div_(127))
    return found.flatten(-2).to(dtype)


class Kept:
    """The keys and values of B texts, up to `size` tokens each: for every layer [B, G, size, K] of both."""

    def __init__(self, config: ModelConfig, rows: int, size: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = rows, config.num_kv_heads, size, config.head_width
        self.keys, self.values = (
            [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)] for _ in range(2)
        )

    @staticmethod
    def bytes_per_token(config: ModelConfig) -> int:
        """Return what a token of one text weighs."""
        return 4 * config.num_layers * config.num_kv_heads * config.head_width

    def select(self, rows: Tensor) -> None:
        """Keep some texts alone, in the order given."""
        for kept in (self.keys, self.values):
            for i, x in enumerate(kept):
                kept[i] = x.index_select(0, rows)


class EmulatedNetwork:
    """The network of a checkpoint, one that `transformer.is_supported`.

    rounds: whether products round activations as the native kernels do; else only sums and dtype differ from float32.
    keeps: the type in which the engine's KV cache keeps numbers.
    """

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, RawTensor],
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        rounds: bool = True,
        keeps: torch.dtype = torch.bfloat16,
    ) -> None:
        self.config, self.device, self.dtype, self.keeps = config, device, dtype, keeps
        self._rope = RotaryTable(torch.tensor(config.inv_freq, dtype=torch.float64, device=device), config.rope_scale)

        def load(name: str) -> Tensor:
            return torch.from_numpy(dequantise(tensors[name]).astype(np.float32)).to(device)

        def product(names: Iterable[str]) -> _Product:
            parts = []
            for name in names:
                is_rounded = rounds and BLOCKS[tensors[f"{name}.weight"].format].size > 1
                bias = load(f"{name}.bias").to(dtype) if f"{name}.bias" in tensors else None
                parts.append((is_rounded, load(f"{name}.weight").to(dtype), bias))
            return _Product(parts, dtype)

        def layer(i: int) -> _Layer:
            at = f"model.layers.{i}"
            norms = [f"{at}.{name}.weight" for name in _NORMS]
            return _Layer(
                config,
                [load(name) if name in tensors else None for name in norms],
                product(f"{at}.self_attn.{name}_proj" for name in "qkv"),
                product([f"{at}.self_attn.o_proj"]),
                product(f"{at}.mlp.{name}_proj" for name in ("gate", "up")),
                product([f"{at}.mlp.down_proj"]),
                keeps,
            )

        self.embedding = load("model.embed_tokens.weight")
        self.unembedding = self.embedding if config.tied else load("lm_head.weight")
        self.final_norm = load("model.norm.weight")
        self._head = product(["model.embed_tokens" if config.tied else "lm_head"])
        self._layers = [layer(i) for i in range(config.num_layers)]

    @property
    def last_tap(self) -> int:
        """The tap of the final norm's output, which the logits are made of."""
        return self.config.num_layers + 1

    @torch.no_grad()
    def is_finite(self) -> bool:
        """Whether a text's numbers fit the `dtype`: float16 ends at 65,504."""
        tokens = torch.arange(_PROBE, device=self.device)[None] * (self.config.vocab_size // _PROBE)
        taps = tuple(range(self.last_tap + 1))
        return all(bool(x.isfinite().all()) for x in self(tokens, taps).values())

    @torch.no_grad()
    def __call__(
        self, tokens: Tensor, taps: Sequence[int], kept: Kept | None = None, first: int = 0
    ) -> dict[int, Tensor]:
        """Return the hidden states of texts [B, T] at each tap, [B, T, D] float32; taps as in `TransformerNetwork`.

        kept: takes the texts' keys and values, as its rows from `first` on. Layers above the last tap are not run.
        """
        positions = torch.arange(tokens.shape[1], device=self.device)
        turn = self._turn(positions)
        x = F.embedding(tokens, self.embedding)
        states = {0: x.clone()} if 0 in taps else {}
        age = positions[:, None] - positions
        for i, (layer, window) in enumerate(zip(self._layers, self.config.windows, strict=True), 1):
            if i > max(taps, default=0):
                break
            mask = (age >= 0) & (age < window) if window is not None and window < len(positions) else None
            x, keys, values = layer.run(x, turn, mask)
            if kept is not None:
                kept.keys[i - 1][first : first + len(x), :, : len(positions)] = keys
                kept.values[i - 1][first : first + len(x), :, : len(positions)] = values
            if i in taps:
                states[i] = x.clone()
        if self.last_tap in taps:
            states[self.last_tap] = self.normed(x)
        return states

    @torch.no_grad()
    def step(self, tokens: Tensor, positions: Tensor, kept: Kept, size: int) -> Tensor:
        """Return the final norm's output [B, D] for one more token of each text, [B], at its position, [B].

        size: more than any of the positions; no more of what is kept is read. Nothing here waits for the device.
        """
        turn = self._turn(positions)
        age = positions[:, None] - torch.arange(size, device=self.device)
        biases = {window: self._bias(age, window) for window in set(self.config.windows)}
        x = F.embedding(tokens, self.embedding)
        for i, (layer, window) in enumerate(zip(self._layers, self.config.windows, strict=True)):
            x = layer.step(x, turn, biases[window], positions, kept.keys[i], kept.values[i])
        return self.normed(x)

    def normed(self, x: Tensor) -> Tensor:
        """Return the final norm of a residual stream."""
        return F.rms_norm(x, x.shape[-1:], self.final_norm, self.config.eps)

    @torch.no_grad()
    def logits(self, states: Tensor) -> Tensor:
        """Return the logits [B, V] of the final norm's output [B, D], float32."""
        return self._head.wide(states)

    def _turn(self, positions: Tensor) -> Turn:
        """Return cosines and sines as they multiply heads [..., H, K]: [..., 1, K], the sines with their signs."""
        cos, sin = self._rope(positions)
        return torch.cat([cos, cos], dim=-1)[..., None, :], torch.cat([-sin, sin], dim=-1)[..., None, :]

    def _bias(self, age: Tensor, window: int | None) -> Tensor:
        """Return what is added to the scores of what is kept, by the age of it [B, S]: [B * G, 1, S]."""
        hidden = age < 0 if window is None else (age < 0) | (age >= window)
        bias = torch.zeros(age.shape, dtype=self.dtype, device=self.device).masked_fill_(hidden, -math.inf)
        return bias.repeat_interleave(self.config.num_kv_heads, dim=0)[:, None]


class _Product:
    """Matrices that multiply one input, their outputs side by side. parts: is_rounded, weight, bias of each."""

    def __init__(self, parts: Iterable[tuple[bool, Tensor, Tensor | None]], dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._parts: list[tuple[bool, Tensor, Tensor | None]] = []
        for is_rounded, weight, bias in parts:
            if self._parts and self._parts[-1][0] == is_rounded and (self._parts[-1][2] is None) == (bias is None):
                _, above, before = self._parts.pop()
                weight = torch.cat([above, weight])
                bias = None if bias is None or before is None else torch.cat([before, bias])
            self._parts.append((is_rounded, weight, bias))

    def __call__(self, x: Tensor) -> Tensor:
        found = [F.linear(self._input(x, is_rounded), weight, bias) for is_rounded, weight, bias in self._parts]
        return found[0] if len(found) == 1 else torch.cat(found, dim=-1)

    def wide(self, x: Tensor) -> Tensor:
        """Return the product of rows [B, in] with a single matrix, in float32 all the way where the device can."""
        ((is_rounded, weight, _),) = self._parts
        x = self._input(x, is_rounded)
        if x.device.type == "cuda" and self._dtype != torch.float32:
            return torch.mm(x, weight.T, out_dtype=torch.float32)
        return F.linear(x, weight).float()

    def _input(self, x: Tensor, is_rounded: bool) -> Tensor:
        return rounded(x, self._dtype) if is_rounded else x.to(self._dtype)


_NORMS = ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")


class _Layer:
    """One pre-norm decoder layer; the residual stream, norms and rotations are float32."""

    def __init__(
        self,
        config: ModelConfig,
        norms: Sequence[Tensor | None],
        qkv: _Product,
        out: _Product,
        gate_up: _Product,
        down: _Product,
        keeps: torch.dtype,
    ) -> None:
        self._config, self._keeps = config, keeps
        self._attn_norm, self._mlp_norm, self._q_norm, self._k_norm = norms
        self._qkv, self._out, self._gate_up, self._down = qkv, out, gate_up, down

    def run(self, x: Tensor, turn: Turn, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output for whole texts [B, T, D], and their keys and values, [B, G, T, K]."""
        q, k, v = (part.transpose(1, 2) for part in self._projected(x, turn))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
        return self._rest(x, attended.transpose(1, 2).flatten(2)), k, v

    def step(self, x: Tensor, turn: Turn, bias: Tensor, positions: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return the output for one token of each text, [B, D]; its key and value are added to those that are kept."""
        q, k, v = self._projected(x, turn)
        groups, width, size = k.shape[1], k.shape[2], bias.shape[-1]
        places = positions[:, None, None, None].expand(-1, groups, 1, width)
        keys.scatter_(2, places, k[:, :, None])
        values.scatter_(2, places, v[:, :, None])
        q = q.reshape(len(x) * groups, -1, width)
        scores = torch.baddbmm(bias, q, keys.flatten(0, 1)[:, :size].mT, alpha=width**-0.5)
        attended = torch.softmax(scores, dim=-1) @ values.flatten(0, 1)[:, :size]
        return self._rest(x, attended.view(len(x), -1))

    def _projected(self, x: Tensor, turn: Turn) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, [..., heads, K], rotated and rounded as they are kept."""
        config = self._config
        whole = heads(self._qkv(F.rms_norm(x, x.shape[-1:], self._attn_norm, config.eps)), config.head_width)
        dtype, turned = whole.dtype, whole[..., : config.num_heads + config.num_kv_heads, :].float()
        values = whole[..., config.num_heads + config.num_kv_heads :, :]
        if self._q_norm is not None and self._k_norm is not None:
            q, k = torch.split(turned, [config.num_heads, config.num_kv_heads], dim=-2)
            own = [F.rms_norm(h, h.shape[-1:], w, config.eps) for h, w in ((q, self._q_norm), (k, self._k_norm))]
            turned = torch.cat(own, dim=-2)
        cos, sin = turn
        turned = turned * cos + turned.roll(config.head_width // 2, dims=-1) * sin
        q, k = torch.split(turned, [config.num_heads, config.num_kv_heads], dim=-2)
        return q.to(dtype), k.to(self._keeps).to(dtype), values.to(self._keeps).to(dtype)

    def _rest(self, x: Tensor, attended: Tensor) -> Tensor:
        """Return the layer's output from what its heads saw, [..., H * K]."""
        x = x + self._out(attended)
        gate, up = self._gate_up(F.rms_norm(x, x.shape[-1:], self._mlp_norm, self._config.eps)).chunk(2, dim=-1)
        return x.add_(self._down(F.silu(gate.float()).mul_(up)))
