from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch

from outpace.errors import UsageError
from outpace.train import export as module
from outpace.train.build import fresh_network
from outpace.train.export import export, read_network
from outpace.train.networks.network import DraftNetwork
from outpace.train.settings import TrainSettings
from outpace.train.target import EngineTarget
from outpace.train.text.corpus import Conversation
from outpace.weights.drafter import open_drafter
from tests.training import tiny_lm


@pytest.fixture(scope="module")
def network(target: EngineTarget, text: list[Conversation]) -> DraftNetwork:
    return fresh_network("eagle", target, text, TrainSettings(steps=1, head_rows=64, num_fixed=20))


@pytest.mark.parametrize(("format", "error"), [("F32", 0.0), ("F16", 1e-3), ("Q8_0", 1e-2), ("Q4_1", 0.2)])
def test_a_file_holds_the_network_rounded_to_its_format(
    network: DraftNetwork, target: EngineTarget, tmp_path: Path, format: str, error: float
) -> None:
    path = tmp_path / "drafter.gguf"
    export(network, target.identity, path, format)
    again = read_network(path, "eagle", target)
    assert again.numbers() == network.numbers()
    for (name, x), (other, y) in zip(network.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other
        assert float((x - y).abs().max()) <= error * float(x.abs().max()), name
        assert error == 0 or x.ndim == 1 or torch.equal(x, y) == (not x.any()), name


def test_it_says_for_whom_it_is(network: DraftNetwork, target: EngineTarget, tmp_path: Path) -> None:
    export(network, target.identity, tmp_path / "d.gguf")
    file = open_drafter(tmp_path / "d.gguf")
    assert (file.kind, file.target_name) == ("eagle", "Tiny")
    assert file.target_fingerprint == target.identity.fingerprint
    assert file.target == target.identity.traits


def test_a_width_that_blocks_do_not_divide_is_kept_in_sixteen_bits(
    network: DraftNetwork, target: EngineTarget, tmp_path: Path
) -> None:
    """The tiny target is 48 wide; the drafter's layer reads two of those, three blocks of 32."""
    export(network, target.identity, tmp_path / "d.gguf")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "d.gguf").tensors}
    assert (kinds["wq"], kinds["head"], kinds["head_norm"]) == ("Q8_0", "F16", "F32")


def test_a_drafter_of_another_target_cannot_be_continued(
    network: DraftNetwork, target: EngineTarget, tmp_path: Path
) -> None:
    export(network, target.identity, tmp_path / "d.gguf")
    other = EngineTarget(tiny_lm(tmp_path, "qwen2", ops="reference"))
    with pytest.raises(UsageError, match="its model type is 'qwen2', must be 'llama'"):
        read_network(tmp_path / "d.gguf", "eagle", other)


def test_a_write_that_fails_leaves_the_old_file(
    network: DraftNetwork, target: EngineTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "d.gguf"
    export(network, target.identity, path, "F16")
    before = path.read_bytes()

    def fail(*args: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(module.os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        export(network, target.identity, path, "Q8_0")
    assert path.read_bytes() == before


def test_an_unknown_format_is_refused(network: DraftNetwork, target: EngineTarget, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown format 'Q8'"):
        export(network, target.identity, tmp_path / "d.gguf", "Q8")
