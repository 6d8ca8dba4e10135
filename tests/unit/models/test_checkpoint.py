from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outpace.errors import WeightsError
from outpace.models import open_checkpoint
from outpace.types import RawTensor
from tests.unit.weights.tiny import CONFIG, tensors_of, write_folder, write_gguf, write_safetensors


def values(tensor: RawTensor) -> np.ndarray[Any, Any]:
    return tensor.data.reshape(-1).view("<f4").reshape(tensor.shape)


# -- GGUF ----------------------------------------------------------------------------------------


def test_a_gguf_file_has_the_config_and_names_of_a_folder(tmp_path: Path) -> None:
    gguf = open_checkpoint(write_gguf(tmp_path / "a.gguf"))
    folder = open_checkpoint(write_folder(tmp_path / "a", CONFIG))
    assert gguf.config == folder.config | {"rms_norm_eps": float(np.float32(1e-5))}
    assert gguf.tensors.keys() == folder.tensors.keys()
    assert all(tensor.name == name for name, tensor in gguf.tensors.items())
    for name in gguf.tensors.keys() - {name for name in gguf.tensors if "q_proj" in name or "k_proj" in name}:
        np.testing.assert_array_equal(values(gguf.tensors[name]), values(folder.tensors[name]))
    assert gguf.num_bytes == folder.num_bytes == sum(t.nbytes for t in tensors_of(CONFIG).values())
    assert gguf.gguf is not None
    assert gguf.gguf["tokenizer.ggml.tokens"][:2] == ["t0", "t1"]
    assert folder.gguf is None


# -- folders -------------------------------------------------------------------------------------


def test_a_folder_is_opened_with_one_file_or_shards(tmp_path: Path) -> None:
    whole = open_checkpoint(write_folder(tmp_path / "whole", CONFIG))
    content = {name: ("F32", value.shape, value.tobytes()) for name, value in tensors_of(CONFIG).items()}
    names = list(content)
    folder = tmp_path / "shards"
    shutil.copytree(tmp_path / "whole", folder, ignore=lambda *_: ["model.safetensors"])
    write_safetensors(folder / "a.safetensors", {name: content[name] for name in names[:5]})
    write_safetensors(folder / "b.safetensors", {name: content[name] for name in names[5:]})
    weight_map = {name: "a.safetensors" if i < 5 else "b.safetensors" for i, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    sharded = open_checkpoint(folder)
    assert sharded.fingerprint == whole.fingerprint
    assert sharded.num_bytes == whole.num_bytes


def test_tensors_that_repeat_what_the_config_says_are_left_out(tmp_path: Path) -> None:
    raw = CONFIG | {"tie_word_embeddings": True}
    tensors = tensors_of(raw)
    more = {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    more["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    checkpoint = open_checkpoint(write_folder(tmp_path / "a", raw, tensors | more))
    assert checkpoint.tensors.keys() == tensors.keys()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"llama"', '{"a": 1, "a": 2}', "[" * 100_000, "\0"])
def test_a_config_that_is_no_json_object_is_an_error(tmp_path: Path, text: str) -> None:
    folder = write_folder(tmp_path / "a", CONFIG)
    (folder / "config.json").write_text(text)
    with pytest.raises(
        WeightsError, match=r"config\.json: (is not valid JSON|must be a JSON object|is not a description)"
    ):
        open_checkpoint(folder)


# -- an output matrix beside a tied config ---------------------------------------------------------


def tied_folder(folder: Path, head: np.ndarray[Any, Any] | None) -> Path:
    raw = CONFIG | {"tie_word_embeddings": True}
    return write_folder(folder, raw, tensors_of(raw) | ({} if head is None else {"lm_head.weight": head}))


def test_an_output_matrix_that_differs_from_a_tied_embedding_is_used_with_a_warning(tmp_path: Path) -> None:
    embedding = tensors_of(CONFIG | {"tie_word_embeddings": True})["model.embed_tokens.weight"]
    head = embedding.copy()
    head[-1, -1] += 1
    with pytest.warns(
        UserWarning, match=r"tie_word_embeddings.*lm_head\.weight differs from it: lm_head\.weight is used"
    ):
        other = open_checkpoint(tied_folder(tmp_path / "other", head))
    assert not other.config["tie_word_embeddings"]
    np.testing.assert_array_equal(values(other.tensors["lm_head.weight"]), head)
    plain = open_checkpoint(tied_folder(tmp_path / "plain", None))
    same = open_checkpoint(tied_folder(tmp_path / "same", embedding))
    assert plain.config["tie_word_embeddings"]
    assert same.config == plain.config
    assert same.tensors.keys() == plain.tensors.keys()
    assert same.fingerprint == plain.fingerprint != other.fingerprint


def test_an_output_matrix_of_a_wrong_shape_is_an_error_and_not_left_out(tmp_path: Path) -> None:
    with (
        pytest.warns(UserWarning, match="differs"),
        pytest.raises(WeightsError, match=r"'lm_head\.weight' has shape \(80, 32\)"),
    ):
        open_checkpoint(tied_folder(tmp_path / "a", np.zeros((80, 32), np.float32)))


# -- ends, fingerprints -------------------------------------------------------------------


def test_end_tokens_are_the_union_of_what_the_files_name(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", CONFIG | {"eos_token_id": 5})
    assert open_checkpoint(folder).eos_ids == {5}
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 7, 9]}')
    assert open_checkpoint(folder).eos_ids == {5, 7, 9}
    (folder / "generation_config.json").write_text('{"eos_token_id": null}')
    assert open_checkpoint(folder).eos_ids == {5}
    keys = {f"tokenizer.ggml.{kind}_token_id": i for i, kind in enumerate(("eos", "eot", "eom"), start=3)}
    assert open_checkpoint(write_gguf(tmp_path / "a.gguf", metadata=keys)).eos_ids == {3, 4, 5}


@pytest.mark.parametrize("eos", [-1, 80, True, "2", 2.0, [2, None], {"id": 2}])
def test_an_end_token_that_is_no_id_is_an_error(tmp_path: Path, eos: object) -> None:
    with pytest.raises(WeightsError, match="an end token must be an id"):
        open_checkpoint(write_folder(tmp_path / "a", CONFIG | {"eos_token_id": eos}))


@pytest.mark.parametrize("none", [(1 << 32) - 1, -1, 80], ids=["unsigned -1", "-1", "number of tokens"])
@pytest.mark.parametrize("kind", ["eos", "eot", "eom"])
def test_an_end_token_that_means_none_is_none(tmp_path: Path, kind: str, none: int) -> None:
    keys = {"tokenizer.ggml.eos_token_id": 3} | {f"tokenizer.ggml.{kind}_token_id": none}
    checkpoint = open_checkpoint(write_gguf(tmp_path / "a.gguf", metadata=keys))
    assert checkpoint.eos_ids == ({3} if kind != "eos" else frozenset())


@pytest.mark.parametrize(
    ("model_type", "own", "generation", "ends"),
    [
        ("llama", {}, None, {2}),  # as transformers has it for Llama and Mistral
        ("mistral", {}, None, {2}),
        ("qwen2", {}, None, set()),
        ("qwen3", {"head_dim": 16}, None, set()),
        ("llama", {"eos_token_id": None}, None, set()),
        ("llama", {}, {"eos_token_id": None}, set()),
        ("llama", {}, {"eos_token_id": 7}, {7}),
        ("llama", {"eos_token_id": 5}, {}, {5}),
    ],
)
def test_an_end_token_that_is_absent_is_the_usual_one_and_null_is_none(
    tmp_path: Path, model_type: str, own: dict[str, Any], generation: dict[str, Any] | None, ends: set[int]
) -> None:
    folder = write_folder(tmp_path / "a", CONFIG | {"model_type": model_type} | own)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    assert open_checkpoint(folder).eos_ids == ends


def test_end_tokens_of_a_gguf_file_are_checked_by_the_reader_of_all_files(tmp_path: Path) -> None:
    named = {f"tokenizer.ggml.{kind}_token_id": token for kind, token in (("eos", 2), ("eot", 7), ("eom", 0xFFFFFFFF))}
    assert open_checkpoint(write_gguf(tmp_path / "a.gguf", metadata=named)).eos_ids == {2, 7}
    none = open_checkpoint(write_gguf(tmp_path / "b.gguf", metadata={"tokenizer.ggml.eos_token_id": None}))
    assert none.eos_ids == frozenset()
    with pytest.raises(WeightsError, match="an end token must be an id"):
        open_checkpoint(write_gguf(tmp_path / "c.gguf", metadata={"tokenizer.ggml.eos_token_id": "2"}))


def test_a_fingerprint_follows_the_content_alone(tmp_path: Path) -> None:
    first = open_checkpoint(write_folder(tmp_path / "a", CONFIG)).fingerprint
    copy = open_checkpoint(shutil.copytree(tmp_path / "a", tmp_path / "copy")).fingerprint
    assert first == copy
    tensors = tensors_of(CONFIG)
    tensors["model.layers.1.mlp.down_proj.weight"][-8:] *= 2  # samples reach to the last byte
    assert open_checkpoint(write_folder(tmp_path / "b", CONFIG, tensors)).fingerprint != first
    assert open_checkpoint(write_folder(tmp_path / "c", CONFIG | {"rope_theta": 7.0})).fingerprint != first


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = [*CONFIG, "eos_token_id", "head_dim", "rope_scaling", "sliding_window", "attention_bias", "quantization_config"]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_in_any_json_file_gives_a_checkpoint_or_an_error(tmp_path: Path, data: st.DataObject) -> None:
    folder = write_folder(tmp_path / "a", CONFIG)
    name = data.draw(st.sampled_from(["config.json", "generation_config.json", "model.safetensors.index.json"]))
    content = dict(CONFIG) if name == "config.json" else {"weight_map": {"w": "model.safetensors"}}
    keys = {"config.json": KEYS, "generation_config.json": ["eos_token_id"]}.get(name, ["weight_map", "metadata"])
    content |= data.draw(st.dictionaries(st.sampled_from(keys), ANYTHING, min_size=1))
    (folder / name).write_text(json.dumps(content))
    try:
        checkpoint = open_checkpoint(folder)
    except WeightsError:
        return
    finally:
        (folder / name).unlink()
    assert checkpoint.config["hidden_size"] == CONFIG["hidden_size"]
    assert all(0 <= token < checkpoint.config["vocab_size"] for token in checkpoint.eos_ids)
