from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import outpace
from benchmarks.convert_eagle import write
from outpace import LanguageModel, UsageError, WeightsError
from outpace.ops.formats import dequantise
from tests.eagle import tiny_eagle_config, tiny_eagle_tensors
from tests.folder import make_folder
from tests.published import write_folder


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


def published(model: Path, path: Path, **changes: Any) -> Path:
    """A random EAGLE-3 drafter for the model in a folder, in SafeAILab's layout."""
    config = json.loads((model / "config.json").read_text())
    width, vocab, rows = config["hidden_size"], config["vocab_size"], 200
    shapes: dict[str, tuple[int, ...]] = {
        **{"fc.weight": (width, 3 * width), "norm.weight": (width,), "lm_head.weight": (rows, width)},
        **{f"midlayer.{name}.weight": (width,) for name in ("input_layernorm", "hidden_norm")},
        "midlayer.post_attention_layernorm.weight": (width,),
        **{f"midlayer.self_attn.{n}_proj.weight": (h * 12, 2 * width) for n, h in (("q", 4), ("k", 2), ("v", 2))},
        "midlayer.self_attn.o_proj.weight": (width, 48),
        **{f"midlayer.mlp.{name}_proj.weight": (64, width) for name in ("gate", "up")},
        "midlayer.mlp.down_proj.weight": (width, 64),
    }
    rng = np.random.default_rng(0)
    tensors: dict[str, NDArray[Any]] = {
        name: rng.standard_normal(shape, np.float32) * np.float32(1.5 / shape[-1] ** 0.5) if len(shape) == 2
        else np.ones(shape, np.float32)
        for name, shape in shapes.items()
    }  # fmt: skip
    tokens = np.sort(rng.permutation(vocab)[:rows])
    tensors |= {"d2t": tokens - np.arange(rows), "t2d": np.isin(np.arange(vocab), tokens)}
    stated = {**config, "num_hidden_layers": 1, "draft_vocab_size": rows, "intermediate_size": 64}
    taps = {"eagle_aux_hidden_state_layer_ids": [0, 1, 2]}
    return write_folder(path, stated | taps | changes, tensors)


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


@pytest.mark.parametrize("strategy", ["eagle", "auto"])
def test_a_published_drafter_leaves_the_text_as_it_is(folder: Path, tmp_path: Path, strategy: str) -> None:
    lm = load(folder, published(folder, tmp_path / "d"))
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
        load(folder, published(folder, tmp_path / "d", **changes))


def test_a_published_drafter_is_refused_by_the_vocabulary_that_lies_beside_it(folder: Path, tmp_path: Path) -> None:
    path = published(folder, tmp_path / "d")
    shutil.copy(folder / "tokenizer.json", path)
    load(folder, path)
    other = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = other["model"]["vocab"]
    a, b = list(vocabulary)[10:12]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (path / "tokenizer.json").write_text(json.dumps(other))
    with pytest.raises(UsageError, match="its token ids stand for other tokens"):
        load(folder, path)


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
