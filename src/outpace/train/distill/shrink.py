"""A student out of its teacher: the layers that change the text's states most, and of their neurons the busiest.

Importance of a layer, measured on text:

    cosine       1 - cosine of the states before and behind it, mean over positions (ShortGPT, arXiv:2403.03853)
    perplexity   how much the teacher's log-perplexity on the text rises when the layer is left out

Importance of a neuron of the feed-forward: mean |silu(gate x) * up x| times the norm of its column of `down`, which is
the mean size of what it adds to the residual stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from outpace.errors import UsageError, one_of
from outpace.train.networks.transformer import TransformerNetwork

IMPORTANCE = ("cosine", "perplexity")
_CHUNK = 2048  # positions whose logits are held at once

Floats = NDArray[np.float64]


def with_layers(network: TransformerNetwork, layers: Sequence[int]) -> TransformerNetwork:
    """Return the network of some of its layers, in this order, counted from 0; it shares their numbers."""
    config = network.config
    if not layers or any(not 0 <= i < config.num_layers for i in layers) or list(layers) != sorted(set(layers)):
        raise UsageError(
            f"layers must be different ones of 0 to {config.num_layers - 1}, in ascending order, are {list(layers)}"
        )
    windows = tuple(config.windows[i] for i in layers)
    small = TransformerNetwork(
        replace(config, num_layers=len(layers), windows=windows),
        device=torch.device("meta"),
        compute=network.compute,
        is_checkpointed=network.is_checkpointed,
    )
    small.model.embed_tokens, small.model.norm = network.model.embed_tokens, network.model.norm
    small.model.layers = nn.ModuleList(network.model.layers[i] for i in layers)
    small.lm_head = network.lm_head
    return small


@torch.no_grad()
def layer_importance(network: TransformerNetwork, text: Sequence[Tensor], measure: str = "cosine") -> Floats:
    """Return the importance of each layer on batches of sequences, [B, T] each, without padding."""
    one_of("importance", measure, IMPORTANCE)
    if measure == "cosine":
        return _by_cosine(network, text)
    everything = range(network.config.num_layers)
    whole = log_perplexity(network, text)
    return np.array(
        [log_perplexity(with_layers(network, [j for j in everything if j != i]), text) - whole for i in everything]
        if network.config.num_layers > 1
        else [np.inf]
    )


def _by_cosine(network: TransformerNetwork, text: Sequence[Tensor]) -> Floats:
    count = network.config.num_layers
    total, positions = np.zeros(count), 0
    for tokens in text:
        states = network(tokens, taps=range(count + 1))
        positions += tokens.numel()
        for i in range(count):
            total[i] += float((1 - F.cosine_similarity(states[i], states[i + 1], dim=-1)).sum())
    return total / positions


@torch.no_grad()
def log_perplexity(network: TransformerNetwork, text: Iterable[Tensor]) -> float:
    """Return the mean negative log-probability of each token but the first of its sequence, [B, T] without padding."""
    total, positions = 0.0, 0
    for tokens in text:
        states = network(tokens)[network.last_tap][:, :-1].flatten(0, 1)
        following = tokens[:, 1:].flatten()
        for start in range(0, len(following), _CHUNK):
            logits = network.logits(states[start : start + _CHUNK]).float()
            total += float(F.cross_entropy(logits, following[start : start + _CHUNK], reduction="sum"))
        positions += len(following)
    return total / positions


def most_important(importance: Floats, count: int) -> tuple[int, ...]:
    """Return the `count` most important layers, ascending; the first and the last are always among them.

    Whatever they measure on text, the first layer reads embeddings and the last one is read by the output matrix.
    """
    if not 1 <= count <= len(importance):
        raise UsageError(f"a student of this teacher has 1 to {len(importance)} layers, not {count}")
    ranked = np.array(importance, np.float64)
    ranked[[0, -1]] = np.inf
    order = np.argsort(-ranked, kind="stable")[:count]
    return tuple(sorted(int(i) for i in order))


@torch.no_grad()
def busiest_neurons(network: TransformerNetwork, text: Iterable[Tensor], count: int) -> list[Tensor]:
    """Return the `count` most important neurons of each layer's feed-forward, ascending, [count]."""
    width = network.config.feed_forward_width
    if not 1 <= count <= width:
        raise UsageError(f"a student's feed-forward has 1 to the teacher's {width} neurons, not {count}")
    names = [f"model.layers.{i}.mlp.down_proj" for i in range(network.config.num_layers)]
    sums = [torch.zeros(width, device=network.model.norm.weight.device) for _ in names]
    hooks = [
        network.get_submodule(name).register_forward_pre_hook(_adder(own))
        for name, own in zip(names, sums, strict=True)
    ]
    try:
        for tokens in text:
            network(tokens, taps=(network.config.num_layers,))
    finally:
        for hook in hooks:
            hook.remove()
    sizes = [network.get_parameter(f"{name}.weight").float().norm(dim=0) for name in names]
    return [(own * size).topk(count).indices.sort().values for own, size in zip(sums, sizes, strict=True)]


def _adder(total: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """Return a hook that adds up the sizes of what a matrix multiplies, [B, T, F] -> [F]."""

    def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        total.add_(inputs[0].float().abs().sum(dim=(0, 1)))

    return add


def narrowed(network: TransformerNetwork, neurons: Sequence[Tensor]) -> TransformerNetwork:
    """Return a copy of the network with these neurons of each layer's feed-forward alone, equally many of each."""
    state = dict(network.state_dict())
    for i, own in enumerate(neurons):
        for name in ("gate_proj.weight", "up_proj.weight", "gate_proj.bias", "up_proj.bias"):
            key = f"model.layers.{i}.mlp.{name}"
            if key in state:
                state[key] = state[key][own]
        key = f"model.layers.{i}.mlp.down_proj.weight"
        state[key] = state[key][:, own]
    return TransformerNetwork.of(
        replace(network.config, feed_forward_width=len(neurons[0])),
        state,
        device=network.model.norm.weight.device,
        compute=network.compute,
        is_checkpointed=network.is_checkpointed,
    )
