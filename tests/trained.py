"""Tiny random `medusa` and `block` drafters for tiny targets."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from outpace.drafters.block import BlockDrafter
from outpace.drafters.medusa import MedusaDrafter
from outpace.models import Transformer, block, medusa
from outpace.models.block import Block, BlockConfig
from outpace.models.medusa import Medusa, MedusaConfig
from outpace.runner import Runner
from outpace.types import RawTensor
from tests.tiny import raw_tensor


def head_tokens(target: Transformer) -> tuple[int, ...]:
    """Return two thirds of the vocabulary, in an order of their own."""
    vocab_size = target.config.vocab_size
    return tuple(np.random.default_rng(3).permutation(vocab_size)[: vocab_size * 2 // 3].tolist())


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int, format: str = "F32") -> dict[str, RawTensor]:
    """Return random tensors of these shapes: matrices that keep the size of what they multiply, vectors around 1."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes.items():
        x = rng.standard_normal(shape, np.float32)
        if len(shape) == 1:
            tensors[name] = raw_tensor(name, (name[0] != "b") + x / np.float32(10))
        else:
            tensors[name] = raw_tensor(name, x * np.float32(1.5 / math.sqrt(shape[1])), format)
    return tensors


def tiny_medusa_config(
    target: Transformer, num_fixed: int = 24, unembedding: str = "shared", num_heads: int = 3
) -> MedusaConfig:
    """Return a config of three heads that are less and less often right."""
    tokens = head_tokens(target)
    accuracies = tuple((0.5 / (1 + k), 0.2 / (1 + k), 0.1 / (1 + k), 0.05 / (1 + k)) for k in range(num_heads))
    return MedusaConfig(unembedding, len(tokens) if unembedding == "own" else num_fixed, tokens, accuracies)


def tiny_medusa(target: Transformer, seed: int = 0, num_fixed: int = 24, unembedding: str = "shared") -> Medusa:
    """Return a random network for a tiny target."""
    config = tiny_medusa_config(target, num_fixed, unembedding)
    tensors = random_tensors(config.shapes(target.config.width), seed)
    rng = np.random.default_rng(seed)
    output = raw_tensor("output", rng.standard_normal((target.config.vocab_size, target.config.width), np.float32))
    return medusa.build(config, tensors, target, output)


def tiny_medusa_drafter(runner: Runner, seed: int = 0, min_confidence: float = 0.0) -> MedusaDrafter:
    """Return a drafter with a random network."""
    return MedusaDrafter(tiny_medusa(runner.model, seed), runner, min_confidence=min_confidence)


def tiny_block_config(target: Transformer, num_fixed: int = 24, num_masks: int = 5) -> BlockConfig:
    """Return a config of two layers."""
    return BlockConfig(
        taps=tuple(range(1, target.config.num_layers + 1)),
        num_layers=2,
        num_masks=num_masks,
        num_heads=4,
        num_kv_heads=2,
        head_width=target.config.head_width,
        num_fixed=num_fixed,
        head_tokens=head_tokens(target),
    )


def tiny_block(target: Transformer, seed: int = 0, num_fixed: int = 24, num_masks: int = 5) -> Block:
    """Return a random network for a tiny target."""
    config = tiny_block_config(target, num_fixed, num_masks)
    return block.build(config, random_tensors(config.shapes(target.config.width, 64), seed), target)


def tiny_block_drafter(runner: Runner, seed: int = 0, min_confidence: float = 0.0) -> BlockDrafter:
    """Return a drafter with a random network."""
    return BlockDrafter(tiny_block(runner.model, seed), runner, min_confidence=min_confidence)
