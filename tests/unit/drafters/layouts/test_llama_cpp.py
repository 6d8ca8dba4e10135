from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outpace.drafters.layouts import open_trained
from outpace.errors import WeightsError
from outpace.ops.formats import dequantise
from outpace.weights.trained import DrafterTarget
from tests.published import SPECULATORS, Arrays, gguf_entries, gguf_tensors, write_gguf


def written(path: Path, tensors: Arrays | None = None, **changes: Any) -> Path:
    entries = gguf_entries(**changes)
    return write_gguf(path / "d.gguf", entries, gguf_tensors("plain") if tensors is None else tensors)


def test_a_file_says_what_it_is_and_for_whom(tmp_path: Path) -> None:
    file = open_trained(written(tmp_path))
    assert (file.kind, file.layout, file.path) == ("eagle", "llama.cpp", tmp_path / "d.gguf")
    assert file.target == DrafterTarget(None, None, 31, 16, None)
    assert file.gguf is not None
    assert file.gguf["general.architecture"] == "eagle3"


def test_a_file_is_the_network_that_its_folder_is(tmp_path: Path) -> None:
    """All entries and all tensors: queries and keys in our order, tokens without offsets."""
    file, folder = open_trained(written(tmp_path)), open_trained(SPECULATORS / "plain")
    raw = dict(file.entries.raw) | {"eps": folder.entries.raw["eps"]}  # float32 in the file
    assert {key: raw[key] for key in raw} == {key: folder.entries.raw[key] for key in raw}
    assert file.entries.raw["eps"] == pytest.approx(1e-5)
    assert file.tensors.keys() == folder.tensors.keys()
    for name in file.tensors:
        assert np.array_equal(dequantise(file.tensors[name]), dequantise(folder.tensors[name])), name


def test_older_files_call_the_taps_otherwise(tmp_path: Path) -> None:
    file = open_trained(written(tmp_path, target_layers=..., extract_layers=[0, 2, 3]))
    assert file.entries.counts("taps") == (0, 2, 3)


def test_without_a_map_the_head_has_all_rows_and_without_a_head_it_is_the_targets(tmp_path: Path) -> None:
    whole = {name: value for name, value in gguf_tensors("whole_head").items() if name != "output.weight"}
    file = open_trained(written(tmp_path, whole))
    assert file.entries.counts("head_tokens") == tuple(range(31))
    assert file.entries.flag("head", True) is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_count": 2}, "block_count is 2: only drafters of one layer"),
        ({"target_layers": ...}, "extract_layers must be a list of layers"),
        ({"target_layers": 3}, "target_layers must be a list of layers"),
        ({"target_layers": [-1, 2, 3]}, "target_layers must be a list of layers"),
        ({"embedding_length": ...}, "embedding_length is missing"),
        ({"attention.head_count": 3}, "attention.head_count is 3, must be a multiple"),
        ({"attention.key_length": 6}, r"'blk\.0\.attn_q\.weight' must have 24 rows, has shape \(32, 32\)"),
        ({"rope.scaling.type": "yarn"}, "rope.scaling.type is 'yarn', supported are none and linear"),
        ({"norm_before_residual": 1}, "norm_before_residual must be true or false"),
        ({"vocab_size": 20}, "names tokens outside"),
    ],
)
def test_metadata_of_no_network_that_we_have_is_refused(changes: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=rf"d\.gguf.*{message}"):
        open_trained(written(tmp_path, **changes))


@pytest.mark.parametrize("name", sorted(gguf_tensors("plain")))
def test_a_tensor_that_is_missing_is_named(name: str, tmp_path: Path) -> None:
    tensors = {key: value for key, value in gguf_tensors("plain").items() if key != name}
    if name in ("token_embd.weight", "output.weight"):
        open_trained(written(tmp_path, tensors))
    elif name == "d2t":
        open_trained(written(tmp_path, tensors))  # the network's own check finds that the head lacks rows
    else:
        with pytest.raises(WeightsError, match=f"tensor '{name}' is missing"):
            open_trained(written(tmp_path, tensors))


def test_a_tensor_too_many_is_named(tmp_path: Path) -> None:
    odd = {"blk.1.ffn_up.weight": np.zeros((2, 2), np.float32)}
    with pytest.raises(WeightsError, match=r"tensor 'blk\.1\.ffn_up\.weight' has no place"):
        open_trained(written(tmp_path, gguf_tensors("plain") | odd))


def test_linear_scaling_is_read(tmp_path: Path) -> None:
    file = open_trained(written(tmp_path, **{"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}))
    assert file.entries.raw["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
