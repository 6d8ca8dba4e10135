"""What a multimodal folder says of its text network. Logits: tests/parity/test_multimodal_folders.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from outpace.errors import WeightsError
from outpace.models import open_checkpoint
from outpace.models.multimodal import is_tied, text_config, text_name, text_tensors
from tests.tiny import tiny_config, tiny_values


def test_a_folder_of_text_alone_has_no_part() -> None:
    assert text_config(tiny_config("llama"), "here") is None


def test_what_is_said_of_the_whole_holds_for_the_text() -> None:
    raw = {"model_type": "mistral3", "eos_token_id": [3, 4], "text_config": {"model_type": "mistral", "hidden_size": 8}}
    found = text_config(raw, "here")
    assert found is not None
    assert found["eos_token_id"] == [3, 4]
    assert found["hidden_size"] == 8
    assert found["vocab_size"] == 32000  # not saved, because it is the class's own


def test_a_text_network_without_a_type_is_that_of_the_outer_name() -> None:
    found = text_config({"model_type": "gemma3", "text_config": {}}, "here")
    assert found is not None
    assert found["model_type"] == "gemma3_text"


@pytest.mark.parametrize("text", [{"model_type": "mllama_text_model"}, {}, {"model_type": ["gemma3_text"]}, [], "text"])
def test_a_text_network_that_we_do_not_have_is_refused_by_name(text: Any) -> None:
    with pytest.raises(WeightsError, match="text_config"):
        text_config({"model_type": "mllama", "text_config": text}, "here")


def test_tensors_of_images_are_left_out_and_unknown_ones_are_not() -> None:
    names = ["vision_tower.a", "model.multi_modal_projector.b", "language_model.model.norm.weight", "adapter.c"]
    kept = text_tensors(dict.fromkeys(names, 0), "here")
    assert [text_name(name) for name in kept] == ["model.norm.weight", "adapter.c"]


def test_another_layout_is_refused() -> None:
    with pytest.raises(WeightsError, match="another layout"):
        text_tensors({"model.text_model.norm.weight": 0}, "here")


@pytest.mark.parametrize(
    ("whole", "text", "has_head", "expected"),
    [(None, False, True, False), (None, False, False, True), (False, False, False, False), (False, True, False, True)],
)
def test_a_folder_without_an_output_matrix_is_tied_unless_both_configs_say_no(
    whole: bool | None, text: bool, has_head: bool, expected: bool
) -> None:
    raw = {} if whole is None else {"tie_word_embeddings": whole}
    assert is_tied(raw, {"tie_word_embeddings": text}, has_head) is expected


def test_a_missing_matrix_of_the_text_is_named(tmp_path: Path) -> None:
    config = tiny_config("llama")
    values = {f"language_model.{name}": x for name, x in tiny_values(config).items()}
    del values["language_model.model.layers.1.mlp.up_proj.weight"]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": config}))
    save_file(values, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        open_checkpoint(tmp_path)
