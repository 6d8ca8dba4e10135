from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from outpace.errors import WeightsError
from outpace.models import eagle
from outpace.models.eagle import EagleConfig
from outpace.ops.formats import dequantise
from outpace.ops.layers import HeadPart
from outpace.ops.protocol import Ops
from outpace.ops.sampling import SamplingBatch
from outpace.types import Segment
from outpace.weights.trained import DrafterTarget, Entries
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


STATED = {
    **{"num_heads": 4, "num_kv_heads": 2, "head_width": 8, "num_fixed": 3, "head_tokens": [5, 3, 96]},
    **{"tap_norm": "none", "tap_residual": False, "rope_theta": 10000.0, "context": 64},
}


def test_without_taps_the_low_the_middle_and_the_high_layer_are_read() -> None:
    target = DrafterTarget(None, None, 97, 48, 32)
    assert EagleConfig.read(Entries(STATED, "a file"), target).taps == (2, 16, 29)
    for num_layers in (3, 5):
        with pytest.raises(
            WeightsError, match=rf"the usual ones, .* are no three layers of a target with {num_layers}"
        ):
            EagleConfig.read(Entries(STATED, "a file"), replace(target, num_layers=num_layers))
    with pytest.raises(WeightsError, match="taps are not stated, and depend on how many layers the target has"):
        EagleConfig.read(Entries(STATED, "a file"), replace(target, num_layers=None))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_width": 7}, "head_width must be even"),
        ({"head_width": 0}, "head_width must be even"),
        ({"rope_scaling": "linear"}, "head_width must be even|rope_scaling"),
        ({"rope_theta": 0}, "rope_theta must be a number above 0"),
        ({"eps": -1.0}, "eps must be a number above 0"),
        ({"tap_norm": "some"}, "tap_norm must be one of unit, none, each, joint"),
        ({"tap_norm": "unit", "taps": [0, 1]}, r"taps must be different layers in \[1, 32\]"),
        ({"taps": [0, 33]}, r"taps must be different layers in \[0, 32\]"),
        ({"head": False}, "head is the target's, so its rows must be the target's too"),
        ({"width": 16}, "width is 16 beside a target's of 48"),
        ({"width": 16, "embedding": True, "tap_residual": True}, "width is 16 beside a target's of 48"),
    ],
)
def test_a_form_that_no_network_has_is_refused_with_the_key(change: dict[str, Any], message: str) -> None:
    target = DrafterTarget(None, None, 97, 48, 32)
    EagleConfig.read(Entries(STATED, "a file"), target)
    with pytest.raises(WeightsError, match=f"a file: ({message})"):
        EagleConfig.read(Entries(STATED | change, "a file"), target)


def test_tensors_of_a_form_are_asked_for_and_only_those() -> None:
    target = tiny_model(MAKERS["reference"](1))
    plain = tiny_eagle_config(target)
    tensors = tiny_eagle_tensors(plain, target)
    for change, missing in (
        ({"has_biases": True}, "bk"),
        ({"has_head_norms": True}, "k_norm"),
        ({"tap_norm": "each"}, r"tap_norm\.0"),
        ({"tap_norm": "joint"}, "tap_norm"),
        ({"has_embedding": True}, "embedding"),
    ):
        with pytest.raises(WeightsError, match=f"look at .*'{missing}'"):
            eagle.build(replace(plain, **change), tensors, target)


def test_an_embedding_with_fewer_rows_than_the_vocabulary_is_refused() -> None:
    target = tiny_model(MAKERS["reference"](1))
    config = replace(tiny_eagle_config(target), has_embedding=True)
    short = {"embedding": raw_tensor("embedding", np.zeros((96, 48), np.float32))}
    with pytest.raises(WeightsError, match=r"'embedding' of the drafter must have shape \(97, 48\), has \(96, 48\)"):
        eagle.build(config, tiny_eagle_tensors(config, target) | short, target)


@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
def test_a_head_that_is_the_targets_gives_the_logits_of_its_output_matrix(make: Any) -> None:
    ops: Ops = make(1)
    target = tiny_model(ops)
    config = replace(tiny_eagle_config(target), has_head=False, num_fixed=97, head_tokens=tuple(range(97)))
    tensors = {name: t for name, t in tiny_eagle_tensors(tiny_eagle_config(target), target).items() if name != "head"}
    network = eagle.build(config, tensors, target)
    states = ops.array(np.random.default_rng(0).standard_normal((1, 48), np.float32))
    plan = ops.plan([Segment([0], 1, [5])], 4)
    guesses = network.guess(states, ops.kv_alloc(network.spec("f32", 4), 1), plan, [None], SamplingBatch.greedy(1), 97)
    normed = ops.rms_norm(guesses.states, network.layer.head_norm, network.layer.layer.eps)
    logits = ops.numpy(ops.linear(normed, target.output))[0]
    assert guesses.tokens[0] == np.argsort(-logits, kind="stable").tolist()
