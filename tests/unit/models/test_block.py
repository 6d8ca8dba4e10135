from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from outpace.errors import WeightsError
from outpace.models import block
from outpace.models.block import BlockConfig
from outpace.ops.formats import dequantise
from outpace.ops.protocol import Ops
from outpace.types import Segment
from outpace.weights.trained import DrafterTarget, Entries
from tests.implementations import MAKERS
from tests.tiny import raw_tensor, tiny_model
from tests.trained import random_tensors, tiny_block_config

Floats = NDArray[Any]
WIDTH = 48


def rms(x: Floats, weight: Floats | float = 1.0) -> Floats:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight


def rotate(x: Floats, positions: Floats, inv_freq: Floats) -> Floats:
    angles = positions[:, None, None] * inv_freq
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], -1)


def formula(w: dict[str, Floats], taps: Floats, anchor: Floats, num_masks: int, inv_freq: Floats) -> Floats:
    """Return the states of the masks behind a context: taps [taps, C, D]; anchor: the token's embedding, [D]."""
    f = np.concatenate([rms(tap) for tap in taps], axis=1)
    last, count = f[:, -WIDTH:], len(f)
    c = rms(last + f @ w["fc"].T, w["context_norm"])
    base = last[-1] + f[-1] @ w["mask_fc"].T
    x = np.concatenate([rms(anchor, w["token_norm"])[None], w["masks"][:num_masks] + base])
    positions = np.arange(count + len(x))
    for i in range(2):
        y = rms(x, w[f"{i}.attn_norm"])
        q = rotate((y @ w[f"{i}.wq"].T).reshape(-1, 4, 12), positions[count:], inv_freq)
        seen = np.concatenate([c, y])
        k = rotate((seen @ w[f"{i}.wk"].T).reshape(-1, 2, 12), positions, inv_freq).repeat(2, axis=1)
        v = (seen @ w[f"{i}.wv"].T).reshape(-1, 2, 12).repeat(2, axis=1)
        scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(12)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        attended = np.einsum("hts,shd->thd", weights / weights.sum(-1, keepdims=True), v).reshape(-1, 48)
        x = x + attended @ w[f"{i}.wo"].T
        h = rms(x, w[f"{i}.mlp_norm"])
        gate, up = h @ w[f"{i}.gate"].T, h @ w[f"{i}.up"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[f"{i}.down"].T
    return x[1:]


@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
def test_the_network_is_the_formula(make: Any) -> None:
    """Two sequences of 9 and 6 tokens before the anchor and blocks of 5 and 3 masks, against float64 NumPy."""
    ops: Ops = make(1)
    target = tiny_model(ops)
    config = tiny_block_config(target)
    tensors = random_tensors(config.shapes(WIDTH, 64), 0)
    network = block.build(config, tensors, target)
    w = {name: dequantise(tensor).astype(np.float64).reshape(tensor.shape) for name, tensor in tensors.items()}
    rng = np.random.default_rng(0)
    taps = rng.standard_normal((2, 15, WIDTH), np.float32)
    lengths, sizes, tables, tokens = (9, 6), (5, 3), ([0, 1, 2, 3], [4, 5, 6]), (11, 22)

    kv = ops.kv_alloc(network.spec("f32", 4), 7)
    context = [Segment(table, 0, [0] * n, num_scored=0) for table, n in zip(tables, lengths, strict=True)]
    network.store(ops.plan(context, 4), [ops.array(tap) for tap in taps], 15, kv)
    anchors = [Segment(table, n, [t]) for table, n, t in zip(tables, lengths, tokens, strict=True)]
    blocks = [
        Segment(table, n, [t] * (1 + size), kind="full")
        for table, n, t, size in zip(tables, lengths, tokens, sizes, strict=True)
    ]
    anchor_plan = ops.plan(anchors, 4)
    last = [ops.array(tap[[8, 14]]) for tap in taps]
    states = ops.numpy(network.fill(anchor_plan, ops.plan(blocks, 4), sizes, last, kv))

    embedding = ops.numpy(ops.embed(target.embedding, anchor_plan)).astype(np.float64)
    inv_freq = np.array(target.config.inv_freq)
    wide = taps.astype(np.float64)
    expected = np.concatenate(
        [
            formula(w, wide[:, :9], embedding[0], 5, inv_freq),
            formula(w, wide[:, 9:], embedding[1], 3, inv_freq),
        ]
    )
    assert np.allclose(states, expected, atol=1e-4)
    normed = network.normed(ops.array(states))
    logits = ops.numpy(ops.linear(normed, network.head.fixed))
    assert np.allclose(logits, rms(expected, w["head_norm"]) @ w["head"][:24].T, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("1.wq"), r"look at \['1\.wq'\]"),
        (lambda t: t.pop("0.gate"), r"look at \['0\.gate'\]"),
        (lambda t: t.update(masks=raw_tensor("masks", np.zeros((4, 48), np.float32))), r"'masks'.*has \(4, 48\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(change: Any, message: str) -> None:
    target = tiny_model(MAKERS["reference"](1))
    config = tiny_block_config(target)
    tensors = random_tensors(config.shapes(WIDTH, 64), 0)
    change(tensors)
    with pytest.raises(WeightsError, match=message):
        block.build(config, tensors, target)


def test_heads_of_another_width_than_the_targets_are_refused() -> None:
    target = tiny_model(MAKERS["reference"](1))
    with pytest.raises(WeightsError, match="heads are 8 wide, the target's 12"):
        block.build(replace(tiny_block_config(target), head_width=8), {}, target)


CONFIG = BlockConfig((1, 2), 2, 5, 4, 2, 12, 2, (3, 4, 5))
TARGET = DrafterTarget("ab", "llama", 97, 48, 2)


def test_a_file_gives_the_config() -> None:
    assert BlockConfig.read(Entries(asdict(CONFIG), "a file"), TARGET) == CONFIG


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_masks": 0}, "num_masks must be at least 1, is 0"),
        ({"num_layers": 0}, "num_layers must be at least 1, is 0"),
        ({"num_heads": 3}, "num_heads must be a multiple of num_kv_heads, is 3"),
        ({"taps": (1, 3)}, r"taps must be different layers in \[1, 2\]"),
        ({"taps": ()}, "taps must be different layers"),
        ({"num_fixed": 4}, "num_fixed must be in"),
    ],
)
def test_what_is_no_block_is_refused_with_file_and_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightsError, match=f"a file: .*{message}"):
        BlockConfig.read(Entries(asdict(CONFIG) | change, "a file"), TARGET)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_token": 97}, r"mask_token must be in \[0, 97\), is 97"),
        ({"mask_token": "x"}, "mask_token must be an integer"),
        ({"eps": 0}, "eps must be a number above 0"),
        ({"head": False}, "head is the target's, so its rows must be the target's too"),
        ({"head_norms": 1}, "head_norms must be true or false"),
        ({"rope_theta": -1.0, "context": 8}, "rope_theta must be a number above 0"),
    ],
)
def test_a_published_form_that_no_network_has_is_refused_with_the_key(change: dict[str, Any], message: str) -> None:
    target = DrafterTarget(None, None, 97, 48, 2)
    with pytest.raises(WeightsError, match=f"a file: {message}"):
        BlockConfig.read(Entries(asdict(CONFIG) | change, "a file"), target)
