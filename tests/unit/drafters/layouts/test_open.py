from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from outpace.drafters.layouts import open_trained
from outpace.errors import UsageError, WeightsError
from outpace.train.export import write_drafter
from tests.published import (
    SPECULATORS,
    copy_speculators,
    flat_config,
    flat_tensors,
    gguf_entries,
    gguf_tensors,
    write_folder,
    write_gguf,
)
from tests.unit.weights.test_drafter import ENTRIES
from tests.unit.weights.tiny import write_gguf as write_model


def test_every_layout_is_recognised(tmp_path: Path) -> None:
    write_drafter(tmp_path / "ours.gguf", ENTRIES, {"fc": np.ones((2, 32), np.float32)}, "Q8_0")
    (tmp_path / "only").mkdir()
    write_gguf(tmp_path / "only" / "x.gguf", gguf_entries(), gguf_tensors("plain"))
    found = {
        "Outpace": tmp_path / "ours.gguf",
        "speculators": SPECULATORS / "plain",
        "SafeAILab": write_folder(tmp_path / "flat", flat_config("plain"), flat_tensors("plain")),
        "llama.cpp": tmp_path / "only",
    }
    assert {layout: open_trained(path).layout for layout, path in found.items()} == {name: name for name in found}


def test_what_is_no_drafter_is_refused_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        open_trained(tmp_path / "missing")
    with pytest.raises(UsageError, match=r"holds no config\.json and 0 GGUF files"):
        open_trained(tmp_path)
    with pytest.raises(UsageError, match=r"is no drafter: general\.architecture is 'llama', must be 'outpace-drafter'"):
        open_trained(write_model(tmp_path / "model.gguf"))
    with pytest.raises(UsageError, match=r"is no drafter that we know: its config\.json has none of"):
        open_trained(write_folder(tmp_path / "m", flat_config("plain", draft_vocab_size=...), flat_tensors("plain")))
    with pytest.raises(UsageError, match="is one file of a folder: give the folder"):
        open_trained(SPECULATORS / "plain" / "model.safetensors")
    with pytest.raises(WeightsError, match="speculators_model_type is 'mtp', supported are eagle3"):
        open_trained(copy_speculators("plain", tmp_path / "s", speculators_model_type="mtp"))
    with pytest.raises(WeightsError, match="speculators_model_type is 3"):
        open_trained(copy_speculators("plain", tmp_path / "s", speculators_model_type=3))


def test_a_folder_without_weights_says_which_there_may_be(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(flat_config("plain")))
    with pytest.raises(WeightsError, match=r"holds no weights: one of model\.safetensors, .*pytorch_model\.bin"):
        open_trained(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"draft_vocab_size": 12', b"\xff\xfe"])
def test_a_config_that_is_no_json_object_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(WeightsError, match=r"config\.json"):
        open_trained(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "x.gguf"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_files_that_are_cut_short_are_refused(name: str, share: float, tmp_path: Path) -> None:
    import torch

    folder = write_folder(tmp_path / "d", flat_config("plain"), flat_tensors("plain"))
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
        torch.save({key: torch.from_numpy(value) for key, value in flat_tensors("plain").items()}, folder / name)
    if name == "x.gguf":
        folder = write_gguf(tmp_path / name, gguf_entries(), gguf_tensors("plain"))
    path = folder if name == "x.gguf" else folder / name
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(WeightsError, match=name.replace(".", r"\.")):
        open_trained(folder)
