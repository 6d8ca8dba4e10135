from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import outpace
from outpace.drafters.layouts import open_trained
from outpace.errors import WeightsError
from outpace.models import medusa
from outpace.models.medusa import MedusaConfig
from outpace.ops.protocol import Ops
from outpace.weights.trained import DrafterTarget
from tests.folder import make_folder
from tests.implementations import MAKERS
from tests.tiny import tiny_model

CONFIG = {"medusa_num_heads": 2, "medusa_num_layers": 1, "base_model_name_or_path": "owner/base"}


class ResidualBlock(torch.nn.Module):
    """arXiv:2401.10774, section 2.1.1, with the names of the original's state_dict."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.nn.functional.silu(self.linear(x))


def heads(num_heads: int = 3, width: int = 48, vocab_size: int = 97) -> torch.nn.ModuleList:
    torch.manual_seed(0)
    return torch.nn.ModuleList(
        torch.nn.Sequential(ResidualBlock(width), torch.nn.Linear(width, vocab_size, bias=False))
        for _ in range(num_heads)
    )


def written(folder: Path, tensors: Any = None, name: str = "medusa_lm_head.safetensors", **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in (CONFIG | changes).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = heads().state_dict() if tensors is None else tensors
    if name.endswith(".pt"):
        torch.save(tensors, folder / name)
    else:
        save_file({key: value.numpy() for key, value in tensors.items()}, folder / name)
    return folder


@pytest.mark.parametrize("name", ["medusa_lm_head.pt", "medusa_lm_head.safetensors"])
@pytest.mark.parametrize("make", MAKERS.values(), ids=list(MAKERS))
def test_every_head_guesses_what_the_originals_network_does(make: Any, name: str, tmp_path: Path) -> None:
    file = open_trained(written(tmp_path / "d", name=name))
    assert (file.kind, file.layout, file.target_name) == ("medusa", "Medusa", "owner/base")
    assert file.target == DrafterTarget(None, None, 97, 48, None)
    ops: Ops = make(1)
    network = medusa.build(MedusaConfig.read(file.entries, file.target), file.tensors, tiny_model(ops), None)
    hidden = np.random.default_rng(0).standard_normal((4, 48), np.float32)
    found = network.logits(network.states(ops.array(hidden), 3))
    assert len(found) == 3  # the config says two
    with torch.no_grad():
        expected = [head(torch.from_numpy(hidden)).numpy() for head in heads()]
    for one, other in zip(found, expected, strict=True):
        assert np.allclose(ops.numpy(one), other, atol=1e-5)


def test_names_may_have_the_prefix_of_the_whole_model(tmp_path: Path) -> None:
    prefixed = {f"medusa_head.{name}": value for name, value in heads().state_dict().items()}
    file = open_trained(written(tmp_path / "d", prefixed))
    assert sorted(file.tensors) == sorted(f"{kind}.{head}" for kind in ("w", "b", "head") for head in range(3))


def test_a_published_medusa_leaves_the_text_as_it_is(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    drafter = written(tmp_path / "d", heads(vocab_size=320).state_dict())
    lm = outpace.load(folder, ops="reference", threads=1, drafter=drafter)
    plain = lm.generate("the cat sat on the", max_new_tokens=30, strategy="none", ignore_eos=True)
    drafted = lm.generate("the cat sat on the", max_new_tokens=30, strategy="medusa", ignore_eos=True)
    assert drafted.tokens == plain.tokens
    assert drafted.stats.proposed["medusa"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("1.0.linear.bias"), r"tensor '1\.0\.linear\.bias' is missing"),
        (lambda t: t.pop("0.1.weight"), r"tensor '0\.1\.weight' is missing"),
        (lambda t: t.clear(), r"tensor '0\.0\.linear\.weight' is missing"),
        (lambda t: t.update({"0.1.linear.weight": torch.ones(48, 48)}), r"'0\.1\.linear\.weight' has no place"),
        (lambda t: t.update({"99.1.weight": torch.ones(2, 2)}), r"'99\.1\.weight' has no place"),
        (lambda t: t.update({"model.norm.weight": torch.ones(2)}), r"'model\.norm\.weight' has no place"),
        (lambda t: t.update({"0.1.weight": torch.ones(97)}), "must have two dimensions"),
    ],
)
def test_tensors_that_are_no_heads_are_refused_by_name(change: Any, message: str, tmp_path: Path) -> None:
    tensors = dict(heads().state_dict())
    change(tensors)
    with pytest.raises(WeightsError, match=message):
        open_trained(written(tmp_path / "d", tensors))


@pytest.mark.parametrize("layers", [0, 2, -1, "1", None])
def test_heads_of_more_or_fewer_blocks_are_refused(layers: Any, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="medusa_num_layers"):
        open_trained(written(tmp_path / "d", medusa_num_layers=layers))


def test_heads_of_another_shape_are_refused_when_the_network_is_built(tmp_path: Path) -> None:
    tensors = heads().state_dict() | {"2.1.weight": torch.ones(96, 48)}
    file = open_trained(written(tmp_path / "d", tensors))
    config = MedusaConfig.read(file.entries, file.target)
    with pytest.raises(WeightsError, match=r"'head\.2' of the drafter must have shape \(97, 48\), has \(96, 48\)"):
        medusa.build(config, file.tensors, tiny_model(MAKERS["reference"](1)), None)
