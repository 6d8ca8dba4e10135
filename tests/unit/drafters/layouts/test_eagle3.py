from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outpace.drafters.layouts import open_trained
from outpace.errors import WeightsError
from outpace.weights.trained import DrafterTarget
from tests.published import (
    SPECULATORS,
    Arrays,
    copy_speculators,
    flat_config,
    flat_tensors,
    tensors_of,
    write_folder,
)


def flat(path: Path, tensors: Arrays | None = None, **changes: Any) -> Path:
    return write_folder(
        path / "d", flat_config("plain", **changes), flat_tensors("plain") if tensors is None else tensors
    )


def test_a_flat_folder_says_what_it_is_and_for_whom(tmp_path: Path) -> None:
    file = open_trained(flat(tmp_path))
    assert (file.kind, file.layout, file.path) == ("eagle", "SafeAILab", tmp_path / "d")
    assert file.target == DrafterTarget(None, None, 31, 16, None)
    assert "taps" not in file.entries.raw
    assert (file.entries.raw["tap_norm"], file.entries.raw["tap_residual"]) == ("none", False)
    assert file.tensors["wq"].name == "midlayer.self_attn.q_proj.weight"
    assert file.num_parameters == sum(x.size for name, x in flat_tensors("plain").items() if name not in ("d2t", "t2d"))


def test_a_nested_folder_names_its_target_and_its_taps(tmp_path: Path) -> None:
    verifier = {"name_or_path": "owner/model", "architectures": ["Qwen3ForCausalLM"]}
    folder = copy_speculators("plain", tmp_path / "d", speculators_config={"verifier": verifier})
    file = open_trained(folder)
    assert (file.layout, file.target_name, file.target.model_type) == ("speculators", "owner/model", "qwen3")
    assert file.entries.counts("taps") == (1, 2, 3)


@pytest.mark.parametrize(
    ("changes", "taps"),
    [
        ({"eagle_aux_hidden_state_layer_ids": [2, 18, 33]}, [2, 18, 33]),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 17, 32]}}, [2, 18, 33]),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": []}}, None),
        ({"eagle_config": None, "eagle_aux_hidden_state_layer_ids": None}, None),
    ],
)
def test_taps_are_counted_as_whoever_wrote_them_does(changes: Any, taps: Any, tmp_path: Path) -> None:
    """Inputs of layers by the config's own key; outputs, one less, within NVIDIA's `eagle_config`."""
    assert open_trained(flat(tmp_path, **changes)).entries.raw.get("taps") == taps


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"norm_before_fc": True}, {"tap_norm": "joint"}),
        ({"fc_norm": True}, {"tap_norm": "each"}),
        ({"eagle_config": {"norm_before_fc": True}}, {"tap_norm": "joint"}),
        ({"norm_before_residual": True, "norm_output": True}, {"norm_before_residual": True, "norm_output": True}),
        ({"target_hidden_size": None}, {"width": 16}),
    ],
)
def test_options_of_the_network_are_read(changes: Any, expected: dict[str, Any], tmp_path: Path) -> None:
    raw = open_trained(flat(tmp_path, **changes)).entries.raw
    assert {key: raw[key] for key in expected} == expected


def test_a_drafter_of_another_width_reads_the_targets_states(tmp_path: Path) -> None:
    file = open_trained(flat(tmp_path, target_hidden_size=48))
    assert (file.target.width, file.entries.count("width")) == (48, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 2}, "num_hidden_layers is 2: only drafters of one layer"),
        ({"draft_vocab_size": 32}, r"draft_vocab_size must be an integer in \[1, 31\]"),
        ({"draft_vocab_size": 11}, r"'lm_head\.weight' has 12 rows, the config says 11"),
        ({"draft_vocab_size": "12"}, "draft_vocab_size must be an integer"),
        ({"vocab_size": 30}, r"'t2d' has shape \(31,\), the config says \(30,\)|names tokens outside"),
        ({"norm_output": "yes"}, "norm_output must be true or false"),
        ({"norm_before_fc": True, "fc_norm": True}, "one norm before fc at most"),
        ({"eagle_aux_hidden_state_layer_ids": [-1]}, "must be a list of layers"),
        ({"eagle_aux_hidden_state_layer_ids": [1 << 40]}, "must be a list of layers"),
        ({"eagle_aux_hidden_state_layer_ids": 3}, "must be a list"),
        ({"eagle_config": {"use_aux_hidden_state": False}}, "use_aux_hidden_state is False, only True is supported"),
        ({"eagle_config": {"use_mtp_layernorm": True}}, "use_mtp_layernorm is True, only False is supported"),
        ({"eagle_config": 3}, "eagle_config must be an object"),
        ({"target_hidden_size": 0}, "target_hidden_size must be an integer"),
    ],
)
def test_a_config_of_no_network_that_we_have_is_refused_with_the_key(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=rf"config\.json.*({message})"):
        open_trained(flat(tmp_path, **changes))


@pytest.mark.parametrize("name", sorted(flat_tensors("plain")))
def test_a_tensor_that_is_missing_is_named_or_the_targets_own(name: str, tmp_path: Path) -> None:
    tensors = {key: value for key, value in flat_tensors("plain").items() if key != name}
    if name in ("t2d", "embed_tokens.weight", "lm_head.weight") or (
        name.endswith("norm.weight") and name != "norm.weight"
    ):
        open_trained(flat(tmp_path, tensors))  # the network's own check knows whether that is enough
    else:
        with pytest.raises(WeightsError, match=f"tensor '{name}' is missing"):
            open_trained(flat(tmp_path, tensors))


def test_a_tensor_too_many_is_named(tmp_path: Path) -> None:
    odd = np.zeros((2, 2), np.float32)
    for name in ("layers.1.mlp.up_proj.weight", "midlayer.mlp.up_proj.bias", "fc.bias", "fc_norm.x.weight", "x"):
        with pytest.raises(WeightsError, match=f"tensor '{name}' has no place in an EAGLE-3 drafter of one layer"):
            open_trained(flat(tmp_path, flat_tensors("plain") | {name: odd}))


def test_copies_of_the_targets_tensors_are_not_read(tmp_path: Path) -> None:
    copies = {
        "verifier_norm.weight": np.ones(16, np.float32),
        "midlayer.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
    }
    assert (
        open_trained(flat(tmp_path, flat_tensors("plain") | copies)).tensors.keys()
        == open_trained(SPECULATORS / "plain").tensors.keys()
    )


def test_one_tensor_by_two_names_is_refused(tmp_path: Path) -> None:
    twice = {"layers.0.mlp.up_proj.weight": tensors_of("plain")["layers.0.mlp.up_proj.weight"]}
    with pytest.raises(WeightsError, match="has no place"):
        open_trained(flat(tmp_path, flat_tensors("plain") | twice))
