from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from outpace.drafters.layouts import open_trained
from outpace.drafters.layouts.export import export_speculators, write_safetensors
from outpace.errors import UsageError, WeightsError
from outpace.models import eagle, normalise
from outpace.models.eagle import EagleConfig
from outpace.ops.reference import ReferenceOps
from outpace.ops.sampling import SamplingBatch
from outpace.types import Segment
from outpace.weights.drafter import DrafterCheckpoint
from outpace.weights.trained import DrafterTarget, Entries
from tests.eagle import head_logits, tiny_eagle_config, tiny_eagle_tensors
from tests.published import SPECULATORS
from tests.tiny import tiny_config, tiny_model

TARGET = normalise(tiny_config(), "tiny")
SIZES = DrafterTarget(None, "llama", 97, 48, 2)


def ours() -> tuple[DrafterCheckpoint, EagleConfig]:
    target = tiny_model(ReferenceOps())
    config = tiny_eagle_config(target)
    tensors = tiny_eagle_tensors(config, target)
    return DrafterCheckpoint(Path("ours"), "eagle", "Tiny", "", SIZES, Entries({}, "ours"), tensors), config


def exported(folder: Path, **changes: Any) -> Path:
    file, config = ours()
    export_speculators(file, replace(config, **changes), TARGET, "owner/tiny", folder / "out")
    return folder / "out"


def test_ours_exported_and_read_back_is_the_same_network(tmp_path: Path) -> None:
    """Logits of every row that is always looked at, and of the further ones."""
    ops = ReferenceOps()
    target = tiny_model(ops)
    file, config = ours()
    back = open_trained(exported(tmp_path))
    read = EagleConfig.read(back.entries, SIZES)
    assert (read.tap_norm, read.has_tap_residual, read.taps) == ("each", False, config.taps)
    assert read.head_tokens[: read.num_fixed] == config.head_tokens[: config.num_fixed]
    rng = np.random.default_rng(0)
    taps, tokens = rng.standard_normal((2, 6, 48), np.float32), rng.integers(0, 97, 6).tolist()
    further = config.head_tokens[config.num_fixed :]
    found = []
    for network in (eagle.build(config, file.tensors, target), eagle.build(read, back.tensors, target)):
        rows = [network.config.head_tokens.index(token) for token in further]
        plan, kv = ops.plan([Segment([0], 1, tokens, num_scored=6)], 8), ops.kv_alloc(network.spec("f32", 8), 1)
        features = network.fuse([([ops.array(tap) for tap in taps], range(6))])
        guesses = network.guess(features, kv, plan, [None], SamplingBatch.greedy(6), 1)
        normed = ops.rms_norm(guesses.states, network.layer.head_norm, network.layer.layer.eps)
        found.append((head_logits(network, guesses), ops.numpy(ops.linear(normed, network.pack_rows(rows)))))
    for one, other in zip(*found, strict=True):
        assert np.allclose(one, other, atol=1e-4)


def test_the_files_say_what_speculators_reads(tmp_path: Path) -> None:
    folder = exported(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    theirs = json.loads((SPECULATORS / "plain" / "config.json").read_text())
    own = {"outpace_fixed_tokens", "auto_map", "speculators_version", "transformers_version"}
    assert config.keys() | own == theirs.keys() | own
    layer = config["transformer_layer_config"]
    assert layer.keys() <= theirs["transformer_layer_config"].keys() | {"num_aux_hidden_states"}
    assert layer["num_aux_hidden_states"] == len(config["eagle_aux_hidden_state_layer_ids"])  # what vLLM goes by
    assert (config["fc_norm"], config["norm_before_fc"], config["draft_vocab_size"]) == (True, False, 64)
    assert config["speculators_config"]["verifier"] == {
        "name_or_path": "owner/tiny",
        "architectures": ["LlamaForCausalLM"],
    }
    tensors, expected = load_file(folder / "model.safetensors"), load_file(SPECULATORS / "each" / "model.safetensors")
    assert tensors.keys() | {"fc_norm.2.weight", "embed_tokens.weight"} == expected.keys()
    tokens = tensors["d2t"] + np.arange(64)
    assert tokens.tolist() == sorted(tokens.tolist()) == np.flatnonzero(tensors["t2d"]).tolist()


def test_the_residual_is_in_fc(tmp_path: Path) -> None:
    file, _ = ours()
    fc = load_file(exported(tmp_path) / "model.safetensors")["fc.weight"]
    stored = file.tensors["fc"].data.view("<f4").reshape(48, 96)
    assert np.array_equal(fc[:, :48], stored[:, :48])
    assert np.allclose(fc[:, 48:] - stored[:, 48:], np.eye(48), atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "target", "reason"),
    [
        ({"width": 16}, {}, "a width other than the target's"),
        ({"tap_norm": "joint"}, {}, "a residual of the last tap beside a norm over all taps"),
        ({"has_head": False}, {}, "a head that is the target's"),
        ({"inv_freq": (1.0,) * 6}, {}, "rotary frequencies of its own"),
        ({}, {"rope_scaling": {"rope_type": "factors", "factors": [1.0] * 6}}, "rotary factors of each pair"),
    ],
)
def test_what_speculators_has_no_words_for_is_refused_by_name(
    changes: dict[str, Any], target: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    file, config = ours()
    with pytest.raises(UsageError, match=f"the layout of speculators has no words for {reason}"):
        export_speculators(file, replace(config, **changes), TARGET | target, "t", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    folder = exported(tmp_path)
    with pytest.raises(UsageError, match="must be an empty folder, or a new one"):
        exported(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("fixed", [[5, 5], [96, "5"], [1 << 40], [0.5]])
def test_fixed_tokens_that_the_head_does_not_have_are_refused(fixed: list[Any], tmp_path: Path) -> None:
    folder = exported(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"outpace_fixed_tokens": fixed}))
    with pytest.raises(WeightsError, match="outpace_fixed_tokens must be different tokens of the head"):
        open_trained(folder)


def test_a_safetensors_file_is_whole_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        write_safetensors(tmp_path / "x.safetensors", {"a": np.ones(2, np.complex64)})
    assert list(tmp_path.iterdir()) == []
    write_safetensors(tmp_path / "x.safetensors", {"a": np.arange(6, dtype=np.float32).reshape(2, 3)})
    assert load_file(tmp_path / "x.safetensors")["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
