from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import outpace
from outpace import LanguageModel, OutpaceError, UsageError, WeightsError
from outpace.api.inspection import export_drafter, inspect_drafter
from outpace.ops.formats import dequantise
from tests.folder import make_folder
from tests.published import (
    DFLASH,
    SPECULATORS,
    copy_speculators,
    dflash_config,
    dflash_tensors,
    flat_config,
    flat_tensors,
    gguf_entries,
    gguf_tensors,
    nested_dflash_config,
    tensors_of,
    write_folder,
    write_gguf,
    write_ours,
    write_published,
)
from tests.vocabularies import byte_level_json, byte_level_metadata


def load(folder: Path, drafter: Path | None = None) -> LanguageModel:
    return outpace.load(folder, ops="reference", threads=1, drafter=drafter)


@pytest.fixture(scope="module")
def ours(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ours(load(folder), tmp_path_factory.mktemp("drafter") / "eagle.gguf")


def test_a_drafter_of_ours_is_told_with_its_cost(folder: Path, ours: Path) -> None:
    found = inspect_drafter(str(ours), str(folder))
    assert (found.kind, found.layout, found.made_for, found.vocabulary) == ("eagle", "Outpace", "Tiny", "same")
    assert (found.network.taps, found.network.fixed_rows, found.network.head_rows) == ((1, 2), 24, 213)
    layer = 3 * 64 * 48 + (48 + 2 * 24) * 96 + 48 * 48
    further = 4 * (layer + 24 * 48 + 4 * 48)  # F32: matrices, rows that are always looked at, norms
    assert found.network.further_level_bytes == further
    assert found.network.first_level_bytes == further + 4 * 48 * 96  # and fc
    model = load(folder)
    embedding = 4 * model.config.vocab_size * 48
    assert found.pass_bytes == model.num_bytes - embedding  # of which a pass takes single rows
    assert found.num_bytes == 4 * found.num_parameters == found.formats["F32"]


def test_without_a_model_only_what_the_files_say_is_told() -> None:
    found = inspect_drafter(str(SPECULATORS / "plain"))
    assert (found.model, found.vocabulary, found.pass_bytes) == (None, None, None)
    assert found.network.taps == (1, 2, 3)
    assert found.as_dict()["target"]["model_type"] == "llama"


def test_taps_that_follow_from_the_model_are_told_with_the_model(tmp_path: Path) -> None:
    model = make_folder(tmp_path / "deep", num_hidden_layers=8)
    drafter = write_published(model, tmp_path / "d", eagle_aux_hidden_state_layer_ids=None)
    assert inspect_drafter(str(drafter)).network.taps is None
    found = inspect_drafter(str(drafter), str(model))
    assert (found.network.taps, found.vocabulary) == ((2, 4, 5), "not stated")


def test_a_drafter_of_another_model_is_refused_with_the_reason(folder: Path, ours: Path, tmp_path: Path) -> None:
    other = make_folder(tmp_path / "other", num_hidden_layers=3)
    with pytest.raises(UsageError, match="its num layers is 3, must be 2"):
        inspect_drafter(str(ours), str(other))
    with pytest.raises(UsageError, match="its width is 48, must be 16; its vocab size is 320, must be 31"):
        inspect_drafter(str(SPECULATORS / "plain"), str(folder))
    qwen = {"verifier": {"name_or_path": "q", "architectures": ["Qwen3ForCausalLM"]}}
    drafter = copy_speculators("plain", tmp_path / "d", speculators_config=qwen)
    with pytest.raises(UsageError, match=r"was made for q .*its model type is 'llama', must be 'qwen3'"):
        inspect_drafter(str(drafter), str(folder))


def test_tensors_that_do_not_fit_are_refused_without_a_model_too(tmp_path: Path) -> None:
    drafter = copy_speculators("plain", tmp_path / "d", norm_before_fc=True)
    with pytest.raises(WeightsError, match=r"look at \['tap_norm'\]"):
        inspect_drafter(str(drafter))
    config: dict[str, Any] = {"target_hidden_size": 24}
    with pytest.raises(WeightsError, match=r"'fc' of the drafter must have shape \(16, 72\), has \(16, 48\)"):
        inspect_drafter(str(copy_speculators("plain", tmp_path / "e", **config)))


def test_the_other_kinds_are_told_with_their_costs(tmp_path: Path) -> None:
    block = inspect_drafter(str(DFLASH))
    assert (block.kind, block.layout, block.network.taps) == ("block", "DFlash", (1, 2, 3))
    assert (block.network.first_level_bytes, block.network.further_level_bytes) == (block.num_bytes, 0)
    tensors = {"0.0.linear.weight": (48, 48), "0.0.linear.bias": (48,), "0.1.weight": (320, 48)}
    twice = {name.replace("0.", f"{head}.", 1): shape for name, shape in tensors.items() for head in (0, 1)}
    values = {name: np.ones(shape, np.float32) for name, shape in twice.items()}
    folder = write_folder(tmp_path / "m", {"medusa_num_heads": 2}, values)
    medusa = inspect_drafter(str(folder))
    assert (medusa.kind, medusa.layout, medusa.network.head_rows) == ("medusa", "Medusa", 320)
    assert medusa.network.first_level_bytes == medusa.network.further_level_bytes == medusa.num_bytes // 2
    values["1.1.weight"] = np.ones((319, 48), np.float32)
    with pytest.raises(WeightsError, match=r"'head\.1' of the drafter must have shape \(320, 48\)"):
        inspect_drafter(str(write_folder(tmp_path / "n", {"medusa_num_heads": 2}, values)))


def test_ours_written_for_others_and_read_back_proposes_the_same(folder: Path, ours: Path, tmp_path: Path) -> None:
    export_drafter(str(ours), str(folder), "speculators", tmp_path / "out", name="owner/tiny")
    trees = []
    for path in (ours, tmp_path / "out"):
        result = load(folder, path).generate(
            "the cat sat on the", max_new_tokens=60, strategy="eagle", ignore_eos=True, trace=True
        )
        assert result.trace is not None
        trees.append([step["tree"]["tokens"] for step in result.trace.as_dict()["steps"]])
    assert trees[0] == trees[1]
    assert sum(map(len, trees[0])) > 20


def test_only_layouts_and_kinds_that_there_are_can_be_written(folder: Path, ours: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown layout 'medusa': allowed: speculators"):
        export_drafter(str(ours), str(folder), "medusa", tmp_path / "out", name="x")
    other = make_folder(tmp_path / "other", num_hidden_layers=3)
    with pytest.raises(UsageError, match="is of the kind block: only eagle has a place in the layout speculators"):
        export_drafter(str(DFLASH), str(folder), "speculators", tmp_path / "out", name="x")
    with pytest.raises(UsageError, match="cannot draft for"):
        export_drafter(str(ours), str(other), "speculators", tmp_path / "out", name="x")


def test_a_published_drafter_can_be_written_in_the_same_layout(folder: Path, tmp_path: Path) -> None:
    drafter = write_published(folder, tmp_path / "d")
    export_drafter(str(drafter), str(folder), "speculators", tmp_path / "out", name="x")
    one, other = outpace.drafters.layouts.open_trained(drafter), outpace.drafters.layouts.open_trained(tmp_path / "out")
    assert one.entries.raw["head_tokens"] == other.entries.raw["head_tokens"]
    for name, tensor in one.tensors.items():
        assert np.array_equal(dequantise(tensor), dequantise(other.tensors[name]))


@pytest.mark.parametrize("other", [False, True])
def test_a_gguf_file_is_held_against_the_tokens_that_it_holds(other: bool, tmp_path: Path) -> None:
    metadata = byte_level_metadata()
    tokens = list(metadata["tokenizer.ggml.tokens"])
    model = make_folder(tmp_path / "m", hidden_size=16, intermediate_size=24, num_hidden_layers=4, head_dim=4)
    (model / "tokenizer.json").write_text(byte_level_json())
    (model / "config.json").write_text(
        json.dumps(json.loads((model / "config.json").read_text()) | {"vocab_size": len(tokens)})
    )
    rows = np.zeros((len(tokens), 16), np.float32)
    save_file(
        load_file(model / "model.safetensors") | {"model.embed_tokens.weight": rows, "lm_head.weight": rows},
        model / "model.safetensors",
    )
    if other:
        tokens[-1], tokens[-2] = tokens[-2], tokens[-1]
    given = metadata | {"tokenizer.ggml.tokens": tokens}
    kept = {name: value for name, value in gguf_tensors("plain").items() if name != "token_embd.weight"}
    path = write_gguf(tmp_path / "d.gguf", gguf_entries(vocab_size=len(tokens)), kept, given)
    if other:
        with pytest.raises(UsageError, match="its token ids stand for other tokens"):
            inspect_drafter(str(path), str(model))
    else:
        assert inspect_drafter(str(path), str(model)).vocabulary == "same"


def test_a_gguf_file_without_tokens_states_none(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "d.gguf", gguf_entries(), gguf_tensors("plain"))
    assert inspect_drafter(str(path)).target.vocabulary is None


ODD: list[Any] = [None, True, -1, 0, (1 << 24) - 2, 1 << 70, 0.5, float("inf"), "x", [], [None], [-1], {}, {"a": 1}]


def changed(config: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    head, *rest = path
    return config | {head: changed(config[head], tuple(rest), value) if rest else value}


def places(config: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return where values stand in nested objects."""
    inner = [(key, *path) for key, value in config.items() if isinstance(value, dict) for path in places(value)]
    return [*((key,) for key in config), *inner]


MEDUSA = {"medusa_num_heads": 1, "medusa_num_layers": 1, "base_model_name_or_path": "b"}
HEADS = {"0.0.linear.weight": np.ones((4, 4), np.float32), "0.0.linear.bias": np.ones(4, np.float32)}
EAGLE_CONFIG = {"eagle_aux_hidden_state_layer_ids": [0, 1, 2], "use_aux_hidden_state": True, "norm_before_fc": False}
FOLDERS: dict[str, tuple[dict[str, Any], Any]] = {
    "flat": (flat_config("plain", eagle_config=EAGLE_CONFIG, sliding_window=4), flat_tensors("plain")),
    "nested": (json.loads((SPECULATORS / "each" / "config.json").read_text()), tensors_of("each")),
    "dflash": (dflash_config(), dflash_tensors()),
    "nested dflash": (nested_dflash_config(), dflash_tensors()),
    "medusa": (MEDUSA, HEADS | {"0.1.weight": np.ones((9, 4), np.float32)}),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_odd_values_anywhere_in_a_config_are_taken_or_refused_in_words(name: str, tmp_path: Path) -> None:
    config, tensors = FOLDERS[name]
    folder = write_folder(tmp_path / "d", config, tensors)
    inspect_drafter(str(folder))
    refused = 0
    for path in places(config):
        for value in ODD:
            (folder / "config.json").write_text(json.dumps(changed(config, path, value)))
            try:
                inspect_drafter(str(folder))
            except OutpaceError as error:
                refused += 1
                assert len(str(error)) < 1000  # noqa: PT017 - whatever was given is not repeated at length
    assert refused > len(places(config))


@pytest.mark.parametrize("key", gguf_entries())
def test_odd_metadata_of_a_gguf_file_is_taken_or_refused_in_words(key: str, tmp_path: Path) -> None:
    for i, value in enumerate([True, 0, (1 << 32) - 1, 0.5, float("nan"), "x", ["a"], [-1, 2, 3]]):
        path = write_gguf(tmp_path / f"{i}.gguf", gguf_entries(**{key: value}), gguf_tensors("plain"))
        with contextlib.suppress(OutpaceError):
            inspect_drafter(str(path))


@pytest.mark.parametrize("name", FOLDERS)
def test_tensors_of_odd_shapes_and_types_are_refused_in_words(name: str, tmp_path: Path) -> None:
    config, tensors = FOLDERS[name]
    for key in tensors:
        for odd in (np.ones(3, np.float32), np.ones((2, 2, 2), np.float32), np.ones((1, 1), np.int64)):
            folder = write_folder(tmp_path / "d", config, dict(tensors) | {key: odd})
            with contextlib.suppress(OutpaceError):
                inspect_drafter(str(folder))
