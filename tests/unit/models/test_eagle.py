from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from outpace.errors import WeightsError
from outpace.models import eagle
from outpace.models.eagle import EagleConfig
from outpace.models.trained import DrafterTarget, Entries
from outpace.ops.formats import dequantise
from outpace.ops.protocol import HeadPart, Ops
from outpace.ops.sampling import SamplingBatch
from outpace.types import Segment
from tests.eagle import tiny_eagle_config, tiny_eagle_tensors
from tests.implementations import MAKERS
from tests.tiny import raw_tensor, tiny_model

Floats = NDArray[Any]


def rms(x: Floats, weight: Floats | float = 1.0) -> Floats:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight


def rotate(x: Floats, positions: Floats, inv_freq: Floats) -> Floats:
    angles = positions[:, None, None] * inv_freq
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], -1)


@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
def test_the_network_is_the_formula(make: Any) -> None:
    """One pass over a chain, in float64 NumPy: token i with the features of i - 1, positions from 1 on."""
    ops: Ops = make(1)
    target = tiny_model(ops)
    config = tiny_eagle_config(target)
    tensors = tiny_eagle_tensors(config, target)
    network = eagle.build(config, tensors, target)
    w = {name: dequantise(tensor).astype(np.float64) for name, tensor in tensors.items()}
    rng = np.random.default_rng(0)
    taps = rng.standard_normal((2, 9, 48), np.float32)
    tokens = rng.integers(0, 97, 10).tolist()

    kv = ops.kv_alloc(network.spec("f32", 4), 3)
    plan = ops.plan([Segment([0, 1, 2], 1, tokens[1:], num_scored=9)], 4)
    features = network.fuse([([ops.array(tap) for tap in taps], range(9))])
    own = ops.head_rows(HeadPart(network.pack_rows([30, 25]), tuple(config.head_tokens[row] for row in (30, 25))))
    guesses = network.guess(features, kv, plan, [own], SamplingBatch.greedy(9), 24)

    embedding = ops.numpy(ops.embed(target.embedding, plan)).astype(np.float64)
    f = np.concatenate([rms(tap.astype(np.float64)) for tap in taps], axis=1)
    g = f[:, -48:] + f @ w["fc"].T
    u = np.concatenate([rms(embedding, w["token_norm"]), rms(g, w["feature_norm"])], axis=1)
    positions, inv_freq = np.arange(1, 10), np.array(target.config.inv_freq)
    q = rotate((u @ w["wq"].T).reshape(9, 4, 12), positions, inv_freq)
    k = rotate((u @ w["wk"].T).reshape(9, 2, 12), positions, inv_freq).repeat(2, axis=1)
    v = (u @ w["wv"].T).reshape(9, 2, 12).repeat(2, axis=1)
    scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(12)
    scores = np.where(positions[:, None] >= positions, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    attended = np.einsum("hts,shd->thd", weights / weights.sum(-1, keepdims=True), v).reshape(9, 48)
    a = g + attended @ w["wo"].T
    h = rms(a, w["mlp_norm"])
    gate, up = h @ w["gate"].T, h @ w["up"].T
    a = a + (gate / (1 + np.exp(-gate)) * up) @ w["down"].T
    expected = rms(a, w["head_norm"]) @ w["head"].T

    assert np.allclose(ops.numpy(guesses.states), a, atol=1e-4)
    known = [*range(24), 30, 25]
    row_of = {config.head_tokens[row]: row for row in known}
    log_total = np.log(np.exp(expected[:, known]).sum(-1))
    for i, (tokens, logprobs) in enumerate(zip(guesses.tokens, guesses.logprobs, strict=True)):
        logits = expected[i, [row_of[token] for token in tokens]]
        assert np.allclose(logprobs, logits - log_total[i], atol=1e-4)
        assert logits[-1] >= np.sort(expected[i, known])[2] - 1e-4  # 24 of the 26


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("fc"), "look at .*fc"),
        (lambda t: t.pop("gate"), "look at .*gate"),
        (lambda t: t.update(bias=raw_tensor("bias", np.zeros(48, np.float32))), "look at .*bias"),
        (lambda t: t.update(wq=raw_tensor("wq", np.zeros((48, 48), np.float32))), r"'wq'.*\(48, 96\), has \(48, 48\)"),
        (lambda t: t.update(head=raw_tensor("head", np.zeros((3, 48), np.float32))), "'head'.*shape"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_refused_by_name(change: Any, message: str) -> None:
    target = tiny_model(MAKERS["reference"](1))
    config = tiny_eagle_config(target)
    tensors = tiny_eagle_tensors(config, target)
    change(tensors)
    with pytest.raises(WeightsError, match=message):
        eagle.build(config, tensors, target)


def test_heads_of_another_width_than_the_targets_are_refused() -> None:
    target = tiny_model(MAKERS["reference"](1))
    config = tiny_eagle_config(target)
    with pytest.raises(WeightsError, match="heads are 8 wide, the target's 12"):
        eagle.build(replace(config, head_width=8), tiny_eagle_tensors(config, target), target)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "num_heads must be a positive multiple"),
        ({"num_heads": "4"}, "num_heads must be an integer"),
        ({"num_kv_heads": 0}, "num_heads must be a positive multiple"),
        ({"num_fixed": 4}, r"num_fixed must be in \[1, 3\]"),
        ({"head_tokens": [5, 5]}, "different ids"),
        ({"head_tokens": [5, 97]}, r"ids in \[0, 97\)"),
        ({"head_tokens": []}, "different ids"),
        ({"taps": [0, 2]}, "taps must be"),
        ({"taps": [2, 1]}, "taps must be"),
        ({"taps": [1, 3]}, "taps must be"),
        ({"taps": 1}, "taps must be a list"),
        ({"taps": None}, "taps must be a list"),
    ],
)
def test_a_config_that_no_network_can_have_is_refused_with_the_key(change: dict[str, Any], message: str) -> None:
    stated = {"num_heads": 4, "num_kv_heads": 2, "head_width": 12, "num_fixed": 2, "taps": [1, 2]}
    stated |= {"head_tokens": [5, 3, 96]}
    target = DrafterTarget("1234", "llama", 97, 48, 2)
    read = EagleConfig.read(Entries(stated, "a file"), target)
    assert (read.taps, read.num_heads, read.head_tokens) == ((1, 2), 4, (5, 3, 96))
    with pytest.raises(WeightsError, match=f"a file: .*{message}"):
        EagleConfig.read(Entries(stated | change, "a file"), target)
