from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from outpace.errors import WeightsError
from outpace.models import medusa
from outpace.models.medusa import MedusaConfig
from outpace.ops.formats import dequantise
from outpace.ops.protocol import Ops
from outpace.weights.trained import DrafterTarget, Entries
from tests.implementations import MAKERS
from tests.tiny import raw_tensor, tiny_model
from tests.trained import random_tensors, tiny_medusa_config

WIDTH = 48


@pytest.mark.parametrize("unembedding", medusa.UNEMBEDDINGS)
@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
def test_the_network_is_the_formula(make: Any, unembedding: str) -> None:
    """Against float64 NumPy: h + silu(w h + b), then the rows of the tokens that the head knows."""
    ops: Ops = make(1)
    target = tiny_model(ops)
    config = tiny_medusa_config(target, unembedding=unembedding)
    tensors = random_tensors(config.shapes(WIDTH), 0)
    rng = np.random.default_rng(0)
    output = raw_tensor("output", rng.standard_normal((97, WIDTH), np.float32))
    network = medusa.build(config, tensors, target, output)
    h = rng.standard_normal((5, WIDTH), np.float32)
    states = network.states(ops.array(h), 2)
    logits = network.logits(states)
    assert len(states) == len(logits) == 2
    w = {name: dequantise(tensor).astype(np.float64) for name, tensor in tensors.items()}
    for k in range(2):
        z = h @ w[f"w.{k}"].T + w[f"b.{k}"]
        x = h + z / (1 + np.exp(-z))
        rows = {
            "target": dequantise(output)[list(config.head_tokens)],
            "shared": w.get("head"),
            "own": w.get(f"head.{k}"),
        }[unembedding]
        assert rows is not None
        assert np.allclose(ops.numpy(states[k]), x, atol=1e-4)
        assert np.allclose(ops.numpy(logits[k]), x @ rows[: config.num_fixed].T, atol=1e-4)
        if unembedding != "own":
            more = ops.linear(states[k], network.pack_rows([30, 25]))
            assert np.allclose(ops.numpy(more), x @ rows[[30, 25]].T, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("w.1"), r"look at \['w\.1'\]"),
        (lambda t: t.update({"w.3": raw_tensor("w.3", np.zeros((48, 48), np.float32))}), r"look at \['w\.3'\]"),
        (lambda t: t.update({"b.0": raw_tensor("b.0", np.zeros(47, np.float32))}), r"'b\.0'.*\(48,\), has \(47,\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(change: Any, message: str) -> None:
    target = tiny_model(MAKERS["reference"](1))
    config = tiny_medusa_config(target)
    tensors = random_tensors(config.shapes(WIDTH), 0)
    change(tensors)
    with pytest.raises(WeightsError, match=message):
        medusa.build(config, tensors, target, None)


def test_a_drafter_that_borrows_the_targets_rows_needs_them() -> None:
    target = tiny_model(MAKERS["reference"](1))
    config = tiny_medusa_config(target, unembedding="target")
    tensors = random_tensors(config.shapes(WIDTH), 0)
    for output in (None, raw_tensor("output", np.zeros((96, WIDTH), np.float32))):
        with pytest.raises(WeightsError, match="not at hand"):
            medusa.build(config, tensors, target, output)


VALUES: dict[str, Any] = {
    "num_heads": 2,
    "unembedding": "shared",
    "num_fixed": 2,
    "head_tokens": [3, 4, 5],
    "accuracies": [0.5, 0.25, 0.5, 0.125],
}
TARGET = DrafterTarget("ab", "llama", 97, 48, 2)


def test_a_file_gives_each_heads_accuracies() -> None:
    config = MedusaConfig.read(Entries(VALUES, "a file"), TARGET)
    assert config == MedusaConfig("shared", 2, (3, 4, 5), ((0.5, 0.25), (0.5, 0.125)))
    assert config.num_heads == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "accuracies must be equally many for each of 3 heads, are 4"),
        ({"num_heads": 0}, "accuracies must be equally many"),
        ({"accuracies": []}, "accuracies must be equally many"),
        ({"accuracies": [0.5, 0.6, 0.5, 0.1]}, "must not rise"),
        ({"accuracies": [0.7, 0.6, 0.5, 0.1]}, "nor add up to more than 1"),
        ({"accuracies": [1.5, 0.6, 0.5, 0.1]}, r"accuracies must be a list of numbers in \[0, 1\]"),
        ({"unembedding": "tied"}, "unembedding must be one of target, shared, own, is 'tied'"),
        ({"unembedding": "own"}, "num_fixed must be 3"),
    ],
)
def test_what_is_no_medusa_is_refused_with_file_and_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightsError, match=f"a file: .*{message}"):
        MedusaConfig.read(Entries(VALUES | change, "a file"), TARGET)
