from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import outpace
from benchmarks.convert_drafter import write
from outpace import LanguageModel, UsageError, WeightsError
from outpace.ops.formats import dequantise
from tests.eagle import tiny_eagle_config, tiny_eagle_tensors
from tests.folder import make_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def drafter(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random drafter for the model in `folder`."""
    lm = load(folder)
    model = lm.runner.model
    config = tiny_eagle_config(model)
    path = tmp_path_factory.mktemp("drafter") / "eagle.gguf"
    entries = {
        "kind": "eagle",
        "target.name": "Tiny",
        "target.fingerprint": "ab",
        "target.vocabulary": lm.tokenizer.fingerprint,
        "target.model_type": model.config.model_type,
        "target.vocab_size": model.config.vocab_size,
        "target.width": model.config.width,
        "target.num_layers": model.config.num_layers,
        **{name: getattr(config, name) for name in ("num_heads", "num_kv_heads", "head_width", "num_fixed")},
        **{name: list(getattr(config, name)) for name in ("taps", "head_tokens")},
    }
    tensors = tiny_eagle_tensors(config, model)
    values = {name: dequantise(tensor).astype(np.float32).reshape(tensor.shape) for name, tensor in tensors.items()}
    write(path, entries, values, quantise=False)
    return path


def load(folder: Path, drafter: Path | None = None) -> LanguageModel:
    return outpace.load(folder, ops="reference", threads=1, drafter=drafter)


@pytest.mark.parametrize("strategy", ["eagle", "auto", "eagle+suffix"])
def test_a_trained_drafter_leaves_the_text_as_it_is(folder: Path, drafter: Path, strategy: str) -> None:
    lm = load(folder, drafter)
    plain = lm.generate("the cat sat on the", max_new_tokens=40, strategy="none", ignore_eos=True)
    drafted = lm.generate("the cat sat on the", max_new_tokens=40, strategy=strategy, ignore_eos=True)
    assert drafted.tokens == plain.tokens
    assert not drafted.stats.warnings
    if strategy == "eagle":
        assert drafted.stats.proposed.keys() <= {"eagle"}
    lm.runner.cache.check()
    assert lm.runner.cache.num_available == lm.runner.cache.capacity


def test_a_model_without_a_trained_drafter_says_how_to_give_one(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"needs a drafter that was trained for .*drafter=PATH"):
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
    write(tmp_path / "d.gguf", entries | {f"target.{name}": n for name, n in counts.items()}, {})
    with pytest.raises(WeightsError, match="kind is 'oracle', supported are eagle"):
        load(folder, tmp_path / "d.gguf")


def test_a_drafter_must_be_a_path(folder: Path) -> None:
    with pytest.raises(UsageError, match="drafter must be a path"):
        outpace.load(folder, drafter=3)  # type: ignore[arg-type]
