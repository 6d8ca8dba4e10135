from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outpace.errors import WeightsError
from outpace.types import RawTensor
from outpace.weights import open_checkpoint
from outpace.weights.config import normalise
from outpace.weights.layout import Entry, entries, select
from tests.tiny import raw_tensor, tiny_config, tiny_shapes
from tests.unit.weights.tiny import CONFIG, tensors_of, write_folder


def config(model_type: str = "llama", **changes: Any) -> dict[str, Any]:
    return normalise(tiny_config(model_type, **changes), "tiny")


def found(entries: list[Entry], source: str) -> dict[str, RawTensor]:
    """Return tensors of zeros, as a file of this kind names them."""
    names = [entry.gguf if source == "gguf" else entry.name for entry in entries]
    shapes = [entry.shape for entry in entries]
    return {name: raw_tensor(name, np.zeros(shape, np.float32)) for name, shape in zip(names, shapes, strict=True)}


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_config_calls_for_the_tensors_that_the_network_has_a_place_for(model_type: str, tied: bool) -> None:
    raw = tiny_config(model_type, tie_word_embeddings=tied, head_dim=20)
    called_for = {entry.name: entry.shape for entry in entries(normalise(raw, "tiny"))}
    assert called_for == tiny_shapes(raw)


def test_every_tensor_has_a_name_of_its_own_in_both_kinds_of_files() -> None:
    called_for = list(entries(config("qwen2")))
    assert len({entry.gguf for entry in called_for}) == len({entry.name for entry in called_for}) == len(called_for)
    names = {entry.name: entry.gguf for entry in called_for}
    assert names["model.layers.1.self_attn.k_proj.bias"] == "blk.1.attn_k.bias"
    assert names["lm_head.weight"] == "output.weight"


@pytest.mark.parametrize("source", ["gguf", "folder"])
def test_tensors_are_selected_under_their_hugging_face_names(source: Any) -> None:
    called_for = list(entries(config()))
    selected = select(found(called_for, source), config(), source, "a")
    assert list(selected) == [tensor.name for tensor in selected.values()] == [entry.name for entry in called_for]


def test_a_few_of_many_missing_tensors_are_named_and_the_rest_counted() -> None:
    with pytest.raises(
        WeightsError, match=r"^a: tensors 'model.embed_tokens.weight', '\S*', '\S*' and 18 more missing"
    ):
        select({}, config(), "folder", "a")


def test_a_vector_of_blocks_is_refused_and_a_matrix_of_blocks_is_not() -> None:
    tensors = found(list(entries(config())), "folder")
    for name in ("model.norm.weight", "model.layers.0.mlp.up_proj.weight"):
        tensors[name] = replace(tensors[name], format="Q8_0")
    with pytest.raises(WeightsError, match=r"tensor 'model\.norm\.weight' is Q8_0, must be F32, F16, BF16"):
        select(tensors, config(), "folder", "a")
    tensors["model.norm.weight"] = replace(tensors["model.norm.weight"], format="BF16")
    assert select(tensors, config(), "folder", "a")["model.layers.0.mlp.up_proj.weight"].format == "Q8_0"


def test_tensors_that_do_not_fit_the_config_are_named(tmp_path: Path) -> None:
    tensors = tensors_of(CONFIG)
    lost = {name: value for name, value in tensors.items() if name != "lm_head.weight"}
    with pytest.raises(WeightsError, match=r"tensor 'lm_head\.weight' missing"):
        open_checkpoint(write_folder(tmp_path / "a", CONFIG, lost))
    with pytest.raises(WeightsError, match=r"tensor 'adapter' in the file, which a llama model does not have"):
        open_checkpoint(write_folder(tmp_path / "a", CONFIG, tensors | {"adapter": np.ones(3, np.float32)}))
    flat = tensors | {"model.norm.weight": np.ones((1, 64), np.float32)}
    with pytest.raises(WeightsError, match=r"'model\.norm\.weight' has shape \(1, 64\), the config says \(64,\)"):
        open_checkpoint(write_folder(tmp_path / "a", CONFIG, flat))
