"""Tiny random eagle drafters for tiny targets."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from outpace.drafters.eagle import EagleDrafter
from outpace.models import Transformer, eagle
from outpace.models.eagle import Eagle, EagleConfig
from outpace.ops.layers import Guesses
from outpace.runner import Runner
from outpace.types import RawTensor
from tests.tiny import raw_tensor


def tiny_eagle_config(target: Transformer, num_fixed: int = 24) -> EagleConfig:
    """Return a config whose head knows two thirds of the vocabulary, in an order of its own."""
    vocab_size, num_layers = target.config.vocab_size, target.config.num_layers
    tokens = np.random.default_rng(3).permutation(vocab_size)[: vocab_size * 2 // 3]
    return EagleConfig(
        taps=tuple(range(1, num_layers + 1)),
        num_heads=4,
        num_kv_heads=2,
        head_width=target.config.head_width,
        num_fixed=num_fixed,
        head_tokens=tuple(tokens.tolist()),
    )


def tiny_eagle_tensors(
    config: EagleConfig, target: Transformer, seed: int = 0, format: str = "F32"
) -> dict[str, RawTensor]:
    """Return random tensors of a tiny drafter."""
    rng = np.random.default_rng(seed)
    width, queries, keys = (
        target.config.width,
        config.num_heads * config.head_width,
        config.num_kv_heads * config.head_width,
    )
    shapes: dict[str, tuple[int, ...]] = {
        "fc": (width, len(config.taps) * width),
        "wq": (queries, 2 * width),
        "wk": (keys, 2 * width),
        "wv": (keys, 2 * width),
        "wo": (width, queries),
        "gate": (64, width),
        "up": (64, width),
        "down": (width, 64),
        "head": (len(config.head_tokens), width),
    }
    tensors = {
        name: raw_tensor(name, rng.standard_normal(shape, np.float32) * np.float32(1.5 / math.sqrt(shape[1])), format)
        for name, shape in shapes.items()
    }
    for name in ("token_norm", "feature_norm", "mlp_norm", "head_norm"):
        tensors[name] = raw_tensor(name, 1 + rng.standard_normal(width, np.float32) / 10)
    return tensors


def tiny_eagle(target: Transformer, seed: int = 0, num_fixed: int = 24) -> Eagle:
    """Return a random network for a tiny target."""
    config = tiny_eagle_config(target, num_fixed)
    return eagle.build(config, tiny_eagle_tensors(config, target, seed), target)


def head_logits(network: Eagle, guesses: Guesses) -> NDArray[np.float32]:
    """Return the logits of the head's fixed rows behind a pass' scored rows, [S, num_fixed]."""
    ops, layer, states = network.ops, network.layer, guesses.states
    if not layer.output_is_normed:
        states = ops.rms_norm(states, layer.head_norm, layer.layer.eps)
    return ops.numpy(ops.linear(states, layer.head.weight))


def tiny_drafter(runner: Runner, seed: int = 0, min_confidence: float = 0.0, width: int = 2) -> EagleDrafter:
    """Return a drafter with a random network, which never gives up before its budget."""
    network = tiny_eagle(runner.model, seed)
    return EagleDrafter(network, runner, width=width, min_confidence=min_confidence, min_expanded=min_confidence)
