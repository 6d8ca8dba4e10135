from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import outpace
from outpace.drafters.layouts import open_trained
from outpace.errors import WeightsError
from outpace.weights.trained import DrafterTarget
from tests.folder import make_folder
from tests.published import DFLASH, dflash_config, dflash_tensors, nested_dflash_config, write_folder


def test_a_folder_of_z_lab_says_what_it_is_and_for_whom() -> None:
    file = open_trained(DFLASH)
    assert (file.kind, file.layout) == ("block", "DFlash")
    assert file.target == DrafterTarget(None, None, 31, 16, 4)
    raw = file.entries.raw
    assert (raw["taps"], raw["num_masks"], raw["mask_token"], raw["head"]) == ([1, 2, 3], 4, 29, False)
    assert file.tensors["1.wq"].name == "layers.1.self_attn.q_proj.weight"


def test_speculators_counts_the_same_layers_otherwise(tmp_path: Path) -> None:
    file = open_trained(write_folder(tmp_path / "d", nested_dflash_config(), dflash_tensors()))
    assert (file.kind, file.layout, file.target_name) == ("block", "speculators", "owner/model")
    assert (file.target.model_type, file.target.num_layers) == ("qwen3", None)
    flat = open_trained(DFLASH).entries.raw
    assert {key: file.entries.raw[key] for key in flat} == flat


def test_a_block_size_may_stand_in_either_place(tmp_path: Path) -> None:
    own = dflash_config()["dflash_config"] | {"block_size": 9}
    file = open_trained(write_folder(tmp_path / "d", dflash_config(dflash_config=own), dflash_tensors()))
    assert file.entries.count("num_masks") == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dflash_config": {"target_layer_ids": [0, 1, 2]}}, "mask_token_id is missing"),
        ({"dflash_config": {"mask_token_id": 29}}, "target_layer_ids must be a list of layers"),
        ({"dflash_config": {"mask_token_id": 29, "target_layer_ids": ["1"]}}, "target_layer_ids must be a list"),
        ({"dflash_config": {"mask_token_id": 29, "target_layer_ids": [0, 1, 3]}}, "must be layers before the last, 3"),
        ({"dflash_config": {"mask_token_id": 29, "target_layer_ids": [1], "selector_rank": 8}}, "selector_rank is 8"),
        ({"dflash_config": 3}, "dflash_config must be an object"),
        ({"block_size": 1}, "block_size must be an integer in"),
        ({"attention_bias": True}, "must be false and full_attention"),
        ({"layer_types": ["sliding_attention"] * 2, "sliding_window": 4}, "must be false and full_attention"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0, only None is supported"),
        ({"num_target_layers": 0}, "num_target_layers must be an integer"),
    ],
)
def test_a_config_of_no_network_that_we_have_is_refused_with_the_key(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=rf"config\.json.*{message}"):
        open_trained(write_folder(tmp_path / "d", dflash_config(**changes), dflash_tensors()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_from_anchor": True}, "sample_from_anchor is True, only False is supported"),
        ({"mask_token_id": None}, "mask_token_id is null"),
        ({"aux_hidden_state_layer_ids": None}, "aux_hidden_state_layer_ids must be a list of layers"),
        ({"draft_vocab_size": 12}, r"'lm_head\.weight' is missing: the head has 12 rows of its own"),
    ],
)
def test_a_nested_config_is_checked_alike(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=message):
        open_trained(write_folder(tmp_path / "d", nested_dflash_config(**changes), dflash_tensors()))


@pytest.mark.parametrize("name", ["fc.weight", "norm.weight", "hidden_norm.weight"])
def test_a_tensor_that_is_missing_is_named(name: str, tmp_path: Path) -> None:
    tensors = {key: value for key, value in dflash_tensors().items() if key != name}
    with pytest.raises(WeightsError, match=f"tensor '{name}' is missing"):
        open_trained(write_folder(tmp_path / "d", dflash_config(), tensors))


@pytest.mark.parametrize(
    "name", ["layers.0.attention_conv.base_kernel", "candidate_selector.x", "layers.x.mlp", "fc.bias"]
)
def test_a_tensor_too_many_is_named(name: str, tmp_path: Path) -> None:
    tensors = dflash_tensors() | {name: np.zeros((2, 2), np.float32)}
    with pytest.raises(WeightsError, match=f"tensor '{name}' has no place in a DFlash drafter"):
        open_trained(write_folder(tmp_path / "d", dflash_config(), tensors))


def test_a_published_dflash_leaves_the_text_as_it_is(tmp_path: Path) -> None:
    """A random drafter for a tiny target of the same width."""
    folder = make_folder(
        tmp_path / "model", hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2
    )
    config = dflash_config(vocab_size=320)
    drafter = write_folder(tmp_path / "d", config, dflash_tensors())
    lm = outpace.load(folder, ops="reference", threads=1, drafter=drafter)
    plain = lm.generate("the cat sat on the", max_new_tokens=30, strategy="none", ignore_eos=True)
    drafted = lm.generate("the cat sat on the", max_new_tokens=30, strategy="block", ignore_eos=True)
    assert drafted.tokens == plain.tokens
    assert drafted.stats.proposed["block"] > 0
    assert not drafted.stats.warnings
