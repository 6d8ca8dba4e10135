from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outpace.errors import WeightsError
from outpace.models import architectures, normalise, open_checkpoint
from outpace.models.select import head_order, select, tensors
from outpace.models.tensors import Tensor
from outpace.types import RawTensor
from tests.tiny import raw_tensor, tiny_config
from tests.unit.weights.tiny import CONFIG, tensors_of, write_folder


def config(model_type: str = "llama", **changes: Any) -> dict[str, Any]:
    return normalise(tiny_config(model_type, **changes), "tiny")


def found(wanted: list[Tensor], source: Any) -> dict[str, RawTensor]:
    """Return tensors of zeros, as a file of this kind names them."""
    shapes = {tensor.stored_name(source): tensor.stored_shape(source) for tensor in wanted}
    return {name: raw_tensor(name, np.zeros(shape, np.float32)) for name, shape in shapes.items()}


@pytest.mark.parametrize("model_type", architectures())
def test_every_tensor_has_a_name_of_its_own(model_type: str) -> None:
    called_for = list(tensors(config(model_type)))
    assert len({tensor.name for tensor in called_for}) == len(called_for)


def test_names_are_those_of_both_kinds_of_files() -> None:
    called_for = list(tensors(config("qwen2")))
    assert len({tensor.gguf for tensor in called_for}) == len(called_for)
    names = {tensor.name: tensor.gguf for tensor in called_for}
    assert names["model.layers.1.self_attn.k_proj.bias"] == "blk.1.attn_k.bias"
    assert names["lm_head.weight"] == "output.weight"


@pytest.mark.parametrize("source", ["gguf", "folder"])
def test_tensors_are_selected_under_their_hugging_face_names(source: Any) -> None:
    called_for = list(tensors(config()))
    selected = select(found(called_for, source), config(), source, "a")
    assert list(selected) == [tensor.name for tensor in selected.values()] == [tensor.name for tensor in called_for]


def test_a_few_of_many_missing_tensors_are_named_and_the_rest_counted() -> None:
    with pytest.raises(
        WeightsError, match=r"^a: tensors 'model.embed_tokens.weight', '\S*', '\S*' and 18 more missing"
    ):
        select({}, config(), "folder", "a")


def test_a_vector_of_blocks_is_refused_and_a_matrix_of_blocks_is_not() -> None:
    stored = found(list(tensors(config())), "folder")
    for name in ("model.norm.weight", "model.layers.0.mlp.up_proj.weight"):
        stored[name] = replace(stored[name], format="Q8_0")
    with pytest.raises(WeightsError, match=r"tensor 'model\.norm\.weight' is Q8_0, must be F32, F16, BF16"):
        select(stored, config(), "folder", "a")
    stored["model.norm.weight"] = replace(stored["model.norm.weight"], format="BF16")
    assert select(stored, config(), "folder", "a")["model.layers.0.mlp.up_proj.weight"].format == "Q8_0"


def test_tensors_that_do_not_fit_the_config_are_named(tmp_path: Path) -> None:
    values = tensors_of(CONFIG)
    lost = {name: value for name, value in values.items() if name != "lm_head.weight"}
    with pytest.raises(WeightsError, match=r"tensor 'lm_head\.weight' missing"):
        open_checkpoint(write_folder(tmp_path / "a", CONFIG, lost))
    with pytest.raises(WeightsError, match=r"tensor 'adapter' in the file, which a llama model does not have"):
        open_checkpoint(write_folder(tmp_path / "a", CONFIG, values | {"adapter": np.ones(3, np.float32)}))
    flat = values | {"model.norm.weight": np.ones((1, 64), np.float32)}
    with pytest.raises(WeightsError, match=r"'model\.norm\.weight' has shape \(1, 64\), the config says \(64,\)"):
        open_checkpoint(write_folder(tmp_path / "a", CONFIG, flat))


@pytest.mark.parametrize(
    ("rotary", "pairs", "order"),
    [
        (8, False, [0, 1, 2, 3, 4, 5, 6, 7]),
        (8, True, [0, 2, 4, 6, 1, 3, 5, 7]),
        (4, False, [0, 1, 4, 5, 2, 3, 6, 7]),
        (4, True, [0, 2, 4, 5, 1, 3, 6, 7]),
    ],
)
def test_rows_of_a_head_are_put_where_row_i_and_row_i_plus_half_turn_together(
    rotary: int, pairs: bool, order: list[int]
) -> None:
    assert head_order(8, rotary, pairs).tolist() == order


def test_rows_of_q_and_k_are_moved_as_stored_bytes_when_asked_for(tmp_path: Path) -> None:
    """In a GGUF file of Llama, rows 2i and 2i + 1 of a head are a pair; here rows i and i + half are."""
    called_for = list(tensors(config(num_attention_heads=2, num_key_value_heads=1, head_dim=4)))
    stored = found(called_for, "gguf")
    data = np.arange(16, dtype=np.uint8).reshape(8, 2)
    stored["blk.0.attn_q.weight"] = replace(stored["blk.0.attn_q.weight"], data=data, format="Q8_0")
    checked = config(num_attention_heads=2, num_key_value_heads=1, head_dim=4)
    moved = select(stored, checked, "gguf", "a")["model.layers.0.self_attn.q_proj.weight"]
    assert moved.data.tolist() == data[[0, 2, 1, 3, 4, 6, 5, 7]].tolist()
    assert (moved.format, moved.shape) == ("Q8_0", (8, 48))
