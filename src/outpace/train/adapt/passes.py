"""Two passes over a text: the clean tokens, causally, and the rows of its blocks, which see those and themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from outpace.train.adapt.blocks import Blocks, visible
from outpace.train.networks.parts import RotaryTable, heads, rotate
from outpace.train.networks.transformer import TransformerNetwork

KeysValues = tuple[Tensor, Tensor]  # [S, H, T, K] each, rotated


@dataclass(frozen=True, slots=True)
class Clean:
    """A text's final states, [S, T, D], and the keys and values of every layer."""

    states: Tensor
    keys_values: list[KeysValues]


def clean_pass(network: TransformerNetwork, tokens: Tensor) -> Clean:
    """Return what the network makes of texts [S, T], each token seeing itself and all before it."""
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    age = positions[:, None] - positions
    masks = {window: None if window is None else (age >= 0) & (age < window) for window in set(network.config.windows)}
    kept: list[KeysValues] = []
    states = _run(network, network.model.embed_tokens(tokens), positions, masks, None, kept)
    return Clean(states, kept)


def block_pass(
    network: TransformerNetwork, blocks: Blocks, embedded: Tensor, clean: Clean, *, is_causal: bool
) -> Tensor:
    """Return the final states of the rows of blocks, [S, R, D], whose inputs were embedded, [S, R, D]."""
    masks = {window: visible(blocks, window, is_causal=is_causal) for window in set(network.config.windows)}
    return _run(network, embedded, blocks.positions, masks, clean.keys_values, None)


def _run(
    network: TransformerNetwork,
    embedded: Tensor,
    positions: Tensor,
    masks: Mapping[int | None, Tensor | None],
    prefix: list[KeysValues] | None,
    kept: list[KeysValues] | None,
) -> Tensor:
    """Run all layers. prefix: keys and values that stand before one's own. kept: where one's own go."""
    config, device = network.config, embedded.device
    inv_freq = torch.tensor(config.inv_freq, dtype=torch.float64, device=device)
    cos_sin = RotaryTable(inv_freq, config.rope_scale)(positions)
    x = embedded.float()
    with torch.autocast(device.type, network.compute, enabled=network.compute != torch.float32):
        layer: Any
        for i, layer in enumerate(network.model.layers):
            mask = masks[config.windows[i]]
            before = None if prefix is None else prefix[i]
            attended, own = _attend(layer, layer.input_layernorm(x), cos_sin, mask, before, config.head_width)
            if kept is not None:
                kept.append(own)
            x = x + attended.float()
            x = x + layer.mlp(layer.post_attention_layernorm(x)).float()
        states: Tensor = network.model.norm(x)
        return states


def _attend(
    layer: Any,
    h: Tensor,
    cos_sin: tuple[Tensor, Tensor],
    mask: Tensor | None,
    before: KeysValues | None,
    head_width: int,
) -> tuple[Tensor, KeysValues]:
    """Return a layer's attention, [S, R, D], and its rows' own keys and values."""
    part = layer.self_attn
    q, k, v = (heads(project(h), head_width) for project in (part.q_proj, part.k_proj, part.v_proj))
    if part.q_norm is not None and part.k_norm is not None:
        q, k = part.q_norm(q).to(v.dtype), part.k_norm(k).to(v.dtype)
    q, k = rotate(q, *cos_sin).transpose(1, 2), rotate(k, *cos_sin).transpose(1, 2)
    groups = q.shape[1] // k.shape[1]
    # Every query head gets its keys: with a mask, kernels that share them among heads hold all weights at once.
    own = k.repeat_interleave(groups, 1), v.transpose(1, 2).repeat_interleave(groups, 1)
    keys, values = own if before is None else (torch.cat([a, b], 2) for a, b in zip(before, own, strict=True))
    out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, is_causal=mask is None)
    return part.o_proj(out.transpose(1, 2).flatten(2)), own
