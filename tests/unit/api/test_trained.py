from __future__ import annotations

import json
import shutil
import sys
import types
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import outpace
from outpace import LanguageModel, UsageError, WeightsError
from outpace.drafters.eagle import EagleDrafter
from outpace.models import Transformer
from outpace.ops.formats import dequantise
from outpace.train.export import write_drafter
from outpace.types import RawTensor
from outpace.weights.drafter import open_drafter
from tests.eagle import tiny_eagle_config, tiny_eagle_tensors
from tests.folder import make_folder
from tests.published import write_published
from tests.trained import random_tensors, tiny_block_config, tiny_medusa_config


def drafter_file(kind: str, lm: LanguageModel, path: Path) -> Path:
    """Write a random drafter for a model."""
    model = lm.runner.model
    config, tensors = KINDS[kind](model)
    fields = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in config.items()
        if isinstance(value, int | str | tuple) and not isinstance(value, bool)
    }
    entries = {
        "kind": kind,
        "target.name": "Tiny",
        "target.fingerprint": "ab",
        "target.vocabulary": lm.tokenizer.fingerprint,
        "target.model_type": model.config.model_type,
        "target.vocab_size": model.config.vocab_size,
        "target.width": model.config.width,
        "target.num_layers": model.config.num_layers,
        **fields,
    }
    values = {name: dequantise(tensor).astype(np.float32).reshape(tensor.shape) for name, tensor in tensors.items()}
    write_drafter(path, entries, values, "F32")
    return path


def eagle_parts(model: Transformer) -> tuple[dict[str, Any], dict[str, RawTensor]]:
    config = tiny_eagle_config(model)
    names = ("num_heads", "num_kv_heads", "head_width", "num_fixed", "taps", "head_tokens")
    return {name: getattr(config, name) for name in names}, tiny_eagle_tensors(config, model)


def medusa_parts(model: Transformer) -> tuple[dict[str, Any], dict[str, RawTensor]]:
    config = tiny_medusa_config(model, unembedding="target")
    flat = tuple(accuracy for head in config.accuracies for accuracy in head)
    fields = {"num_heads": config.num_heads, **asdict(config), "accuracies": flat}
    return fields, random_tensors(config.shapes(model.config.width), 0)


def block_parts(model: Transformer) -> tuple[dict[str, Any], dict[str, RawTensor]]:
    config = tiny_block_config(model)
    return asdict(config), random_tensors(config.shapes(model.config.width, 64), 0)


KINDS = {"eagle": eagle_parts, "medusa": medusa_parts, "block": block_parts}


@pytest.fixture(scope="module")
def files(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random drafters of every kind for the model in `folder`."""
    lm, path = load(folder), tmp_path_factory.mktemp("drafter")
    return {kind: drafter_file(kind, lm, path / f"{kind}.gguf") for kind in KINDS}


@pytest.fixture(scope="module")
def drafter(files: dict[str, Path]) -> Path:
    return files["eagle"]


def load(folder: Path, drafter: Path | None = None) -> LanguageModel:
    return outpace.load(folder, ops="reference", threads=1, drafter=drafter)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("strategy", ["{}", "auto", "{}+suffix"])
def test_a_trained_drafter_leaves_the_text_as_it_is(
    folder: Path, files: dict[str, Path], kind: str, strategy: str
) -> None:
    lm = load(folder, files[kind])
    name = strategy.format(kind)
    plain = lm.generate("the cat sat on the", max_new_tokens=40, strategy="none", ignore_eos=True)
    drafted = lm.generate("the cat sat on the", max_new_tokens=40, strategy=name, ignore_eos=True)
    assert drafted.tokens == plain.tokens
    assert not drafted.stats.warnings
    if name == kind:
        assert drafted.stats.proposed.keys() <= {kind}
    lm.runner.cache.check()
    assert lm.runner.cache.num_available == lm.runner.cache.capacity


def test_an_eagle_is_expected_to_cost_its_part_of_the_targets_bytes(folder: Path, drafter: Path) -> None:
    lm = load(folder, drafter)
    assert isinstance(lm.loaded.trained, EagleDrafter)
    cost = lm.loaded.trained.expectation
    assert cost is not None
    sizes = {name: tensor.data.nbytes for name, tensor in open_drafter(drafter).tensors.items()}
    config = lm.loaded.trained.network.config
    unread = sizes["head"] * (1 - config.num_fixed / len(config.head_tokens))
    assert cost.question == pytest.approx((sum(sizes.values()) - unread) / lm.loaded.num_bytes, rel=0.01)
    assert 0 < cost.node < cost.question


@pytest.mark.parametrize("strategy", ["eagle", "auto"])
def test_a_published_drafter_leaves_the_text_as_it_is(folder: Path, tmp_path: Path, strategy: str) -> None:
    lm = load(folder, write_published(folder, tmp_path / "d"))
    plain = lm.generate("the cat sat on the", max_new_tokens=40, strategy="none", ignore_eos=True)
    drafted = lm.generate("the cat sat on the", max_new_tokens=40, strategy=strategy, ignore_eos=True)
    assert drafted.tokens == plain.tokens
    assert not drafted.stats.warnings
    if strategy == "eagle":
        assert drafted.stats.proposed["eagle"] > 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vocab_size": 330}, "its vocab size is 320, must be 330|'t2d' has shape"),
        ({"target_hidden_size": 64}, "its width is 48, must be 64"),
        ({"eagle_aux_hidden_state_layer_ids": [0, 1, 3]}, r"taps must be different layers in \[0, 2\]"),
        ({"eagle_aux_hidden_state_layer_ids": None}, "the usual ones, .*, are no three layers of a target with 2"),
    ],
)
def test_a_published_drafter_of_another_model_is_refused_by_its_config(
    changes: Any, reason: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises((UsageError, WeightsError), match=reason):
        load(folder, write_published(folder, tmp_path / "d", **changes))


def test_a_drafter_is_loaded_by_its_hub_id(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def snapshot_download(repo_id: str, *, allow_patterns: list[str]) -> str:
        asked.append(repo_id)
        return str(write_published(folder, tmp_path / "d"))

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    lm = outpace.load(folder, ops="reference", threads=1, drafter="owner/tiny-eagle3")
    assert asked == ["owner/tiny-eagle3"]
    assert lm.loaded.trained is not None


def test_a_published_drafter_is_refused_by_the_vocabulary_that_lies_beside_it(folder: Path, tmp_path: Path) -> None:
    path = write_published(folder, tmp_path / "d")
    shutil.copy(folder / "tokenizer.json", path)
    load(folder, path)
    other = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = other["model"]["vocab"]
    a, b = list(vocabulary)[10:12]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (path / "tokenizer.json").write_text(json.dumps(other))
    with pytest.raises(UsageError, match="its token ids stand for other tokens"):
        load(folder, path)


@pytest.mark.parametrize(("kind", "asked"), [("medusa", "eagle"), ("eagle", "block"), ("block", "medusa")])
def test_a_drafter_of_another_kind_than_asked_for_is_named(
    folder: Path, files: dict[str, Path], kind: str, asked: str
) -> None:
    with pytest.raises(UsageError, match=rf'"{asked}" needs a drafter of that kind .*it has now is \'{kind}\''):
        load(folder, files[kind]).generate("hi", strategy=asked)


def test_a_model_without_a_trained_drafter_says_how_to_give_one(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"needs a drafter of that kind that was trained for .*drafter=PATH"):
        load(folder).generate("hi", strategy="eagle")


def test_a_drafter_of_another_model_is_refused_when_loading(drafter: Path, tmp_path: Path) -> None:
    other = make_folder(tmp_path / "other", num_hidden_layers=3)
    with pytest.raises(UsageError, match=r"cannot draft for .*its num layers is 3, must be 2"):
        load(other, drafter)


def test_a_kind_that_there_is_no_network_for_is_refused_with_those_there_are(folder: Path, tmp_path: Path) -> None:
    lm = load(folder)
    sizes = lm.runner.model.config
    entries = {"kind": "oracle", "target.name": "Tiny", "target.fingerprint": "ab"}
    entries |= {"target.vocabulary": lm.tokenizer.fingerprint, "target.model_type": sizes.model_type}
    counts = {name: getattr(sizes, name) for name in ("vocab_size", "width", "num_layers")}
    write_drafter(tmp_path / "d.gguf", entries | {f"target.{name}": n for name, n in counts.items()}, {}, "Q8_0")
    with pytest.raises(WeightsError, match="kind is 'oracle', supported are eagle"):
        load(folder, tmp_path / "d.gguf")


def test_a_drafter_must_be_a_path(folder: Path) -> None:
    with pytest.raises(UsageError, match="drafter must be a path"):
        outpace.load(folder, drafter=3)  # type: ignore[arg-type]
