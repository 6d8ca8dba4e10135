from collections import Counter
from typing import Any

import numpy as np
import pytest

from outpace import models
from outpace.errors import WeightsError
from outpace.models import normalise
from outpace.ops.reference import ReferenceOps
from outpace.types import RawTensor
from tests.tiny import raw_tensor, tiny_config, tiny_model, tiny_tensors


def build(tensors: dict[str, RawTensor], **overrides: Any) -> models.Transformer:
    return models.build(normalise(tiny_config(**overrides), "tiny"), tensors, ReferenceOps())


class Counting(ReferenceOps):
    """Ops that count what they pack."""

    def __init__(self) -> None:
        super().__init__()
        self.packed: Counter[str] = Counter()

    def pack(self, tensor: RawTensor) -> Any:
        self.packed[tensor.name] += 1
        return super().pack(tensor)


def test_a_missing_tensor_is_named_with_its_shape() -> None:
    tensors = tiny_tensors(tiny_config())
    del tensors["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(WeightsError, match=r"'model.layers.1.mlp.up_proj.weight' of shape \(80, 48\) is missing"):
        build(tensors)


def test_a_wrong_shape_is_refused_with_both_shapes() -> None:
    name = "model.layers.0.self_attn.k_proj.weight"
    tensors = tiny_tensors(tiny_config()) | {name: raw_tensor(name, np.zeros((48, 48), np.float32))}
    with pytest.raises(WeightsError, match=r"\(24, 48\).*\(48, 48\)"):
        build(tensors)


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.o_proj.bias", "model.layers.2.input_layernorm.weight"])
def test_a_tensor_that_the_network_would_ignore_is_refused(name: str) -> None:
    tensors = tiny_tensors(tiny_config()) | {name: raw_tensor(name, np.zeros(48, np.float32))}
    with pytest.raises(WeightsError, match=f"'{name}' has no place"):
        build(tensors)


def test_rotary_frequencies_in_a_file_are_left_alone() -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    build(tiny_tensors(tiny_config()) | {name: raw_tensor(name, np.zeros(6, np.float32))})


@pytest.mark.parametrize("tied", [False, True])
def test_a_tied_embedding_is_packed_once_and_used_twice(tied: bool) -> None:
    ops = Counting()
    model = tiny_model(ops, tie_word_embeddings=tied)
    assert (model.output is model.embedding) is tied
    assert set(ops.packed.values()) == {1}
    assert ("lm_head.weight" in ops.packed) is not tied


def test_the_caller_s_tensors_are_not_touched() -> None:
    tensors = tiny_tensors(tiny_config())
    names = list(tensors)
    build(tensors)
    assert list(tensors) == names


@pytest.mark.parametrize(
    ("model_type", "overrides", "windows", "max_window"),
    [
        ("llama", {}, (None, None), None),
        ("mistral", {}, (24, 24), 24),
        ("mistral", {"sliding_window": None}, (None, None), None),
        ("qwen2", {}, (None, None), None),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}, (None, 9), None),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0}, (9, 9), 9),
    ],
)
def test_windows_are_each_layer_s_own(
    model_type: str, overrides: dict[str, Any], windows: tuple[int | None, ...], max_window: int | None
) -> None:
    model = tiny_model(ReferenceOps(), model_type, **overrides)
    assert tuple(layer.parts.window for layer in model.layers) == windows
    assert model.max_window == max_window


def test_the_cache_is_told_the_geometry() -> None:
    spec = tiny_model(ReferenceOps(), "qwen3").spec("int8")
    assert (spec.num_layers, spec.num_kv_heads, spec.head_width, spec.format) == (2, 2, 16, "int8")
