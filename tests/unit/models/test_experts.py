from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from outpace.errors import WeightsError
from outpace.models import architectures, normalise, sizes
from outpace.models.experts import EXPERTS, Numbers, Outputs
from outpace.models.select import select, tensors
from outpace.ops.formats import dequantise
from tests.tiny import raw_tensor, tiny_config


@pytest.mark.parametrize("format", ["F32", "F16", "BF16"])
def test_a_matrix_is_taken_out_of_a_stack_that_has_its_inputs_first(format: str) -> None:
    stack = np.arange(2 * 3 * 8, dtype=np.float32).reshape(2, 3, 8)
    raw = raw_tensor("w", stack, format)
    for first in (0, 1):
        found = replace(raw, data=Outputs(1, (3, 8), first, 2)(raw), shape=(4, 3))
        np.testing.assert_array_equal(dequantise(found), stack[1].T[first::2])


def test_blocks_are_not_taken_apart() -> None:
    raw = raw_tensor("w", np.ones((1, 4, 32), np.float32), "Q8_0")
    with pytest.raises(WeightsError, match="'w' is Q8_0: its blocks cannot be taken apart"):
        Outputs(0, (4, 32))(raw)


def test_numbers_that_take_turns_are_taken_apart() -> None:
    raw = raw_tensor("b", np.arange(12, dtype=np.float32).reshape(2, 6))
    found = replace(raw, data=Numbers(1, 1, 2)(raw), shape=(3,))
    assert dequantise(found).tolist() == [7, 9, 11]


def test_an_expert_s_matrix_is_some_rows_of_a_gguf_file_s_stack() -> None:
    config = normalise(tiny_config("qwen3_moe"), "tiny")
    wanted = list(tensors(config))
    stored = {t.stored_name("gguf"): np.zeros(t.stored_shape("gguf"), np.float32) for t in wanted}
    stack = "blk.1.ffn_down_exps.weight"
    stored[stack] = np.random.default_rng(0).standard_normal((6, 48, 24), np.float32)
    selected = select({name: raw_tensor(name, x) for name, x in stored.items()}, config, "gguf", "a")
    found = selected["model.layers.1.mlp.experts.4.down_proj.weight"]
    assert np.shares_memory(found.data, selected.stored[stack].data), "nothing is copied"
    np.testing.assert_array_equal(dequantise(found), stored[stack][4])
    assert len(selected.stored) == len(stored)


@pytest.mark.parametrize(
    "model_type", [name for name in architectures() if sizes(normalise(tiny_config(name), "")).experts]
)
def test_every_expert_has_its_own_tensors(model_type: str) -> None:
    own = sizes(normalise(tiny_config(model_type), "tiny"))
    assert own.experts is not None
    places = architectures()[model_type].places(own, 1)
    for part in ("gate", "up", "down"):
        assert [f"{EXPERTS}{part}.{e}" in places for e in range(own.experts.num_experts + 1)] == [True] * (
            own.experts.num_experts
        ) + [False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": 0}, "num_experts must be an integer in"),
        (
            {"num_experts": 1024, "num_hidden_layers": 1000},
            "num_experts is 1024 in 1000 layers, at most 65536 together",
        ),
        ({"num_experts_per_tok": 7}, "num_experts_per_tok must be an integer in \\[1, 6\\], is 7"),
        ({"mlp_only_layers": [1.0]}, "mlp_only_layers must be a list of integers"),
        ({"mlp_only_layers": 1}, "mlp_only_layers must be a list"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step must be an integer in"),
        ({"norm_topk_prob": "yes"}, "norm_topk_prob must be true or false"),
    ],
)
def test_experts_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        normalise(tiny_config("qwen3_moe") | changes, "config.json")


def test_a_gate_with_another_limit_is_refused() -> None:
    with pytest.raises(WeightsError, match=r"swiglu_limit is 5\.0, only 7\.0 is supported"):
        normalise(tiny_config("gpt_oss", swiglu_limit=5.0), "config.json")
