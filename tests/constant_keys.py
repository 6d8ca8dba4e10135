"""A tiny model whose keys have a large constant part, as those of qwen2: what an int8 cache has to cope with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from outpace import models
from outpace.models import Transformer
from outpace.models.select import select
from outpace.models.transformer import Block
from outpace.ops.protocol import Ops
from tests.tiny import raw_tensor, tiny_config, tiny_values

_CONFIG = tiny_config("qwen2", hidden_size=128, num_hidden_layers=2)


def with_constant_keys(ops: Ops) -> Transformer:
    """Return a model with a large constant in four channels of each key head, of which queries read little."""
    config, rng = models.normalise(_CONFIG, "tiny"), np.random.default_rng(5)
    values = tiny_values(_CONFIG, spread=1.5)
    heads = _CONFIG["num_attention_heads"]
    width = _CONFIG["hidden_size"] // heads
    channels = [5, 11, 5 + width // 2, 11 + width // 2]
    for index in range(_CONFIG["num_hidden_layers"]):
        queries, keys = (f"model.layers.{index}.self_attn.{name}_proj" for name in "qk")
        values[keys + ".bias"].reshape(-1, width)[:, channels] += 300 * rng.choice((-1, 1), (2, 4))
        for part in (".weight", ".bias"):
            values[queries + part].reshape(heads, width, -1)[:, channels] /= 400
    tensors = {name: raw_tensor(name, x) for name, x in values.items()}
    return models.build(config, select(tensors, config, "folder", "tiny"), ops)


def without_factors(model: Transformer) -> Transformer:
    """Return the same model as if none of its channels stuck out: the fault that int8 had."""
    return replace(model, layers=tuple(_without(block, model.ops) for block in model.layers))


def _without(block: Block, ops: Ops) -> Block:
    assert block.parts.key_scale is not None, "no channel sticks out: the tests could not fail"
    parts = replace(block.parts, key_scale=None)
    return replace(block, parts=parts, handle=ops.layer(parts))
