from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outpace.errors import UsageError, WeightsError
from outpace.types import RawTensor
from outpace.weights import open_checkpoint
from outpace.weights.translate import RotateHalf
from tests.unit.weights.tiny import CONFIG, tensors_of, write_folder, write_gguf, write_safetensors


def values(tensor: RawTensor) -> np.ndarray[Any, Any]:
    return tensor.data.reshape(-1).view("<f4").reshape(tensor.shape)


def gguf_tensors(**changes: Any) -> dict[str, np.ndarray[Any, Any]]:
    return tensors_of(CONFIG | changes, names="gguf")


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


def test_rows_of_q_and_k_are_moved_as_stored_bytes_when_asked_for() -> None:
    data = np.arange(16, dtype=np.uint8).reshape(8, 2)  # two heads of width 4
    name = "model.layers.0.self_attn.q_proj.weight"
    config = {"num_attention_heads": 2, "num_key_value_heads": 1}
    tensors = RotateHalf({name: RawTensor(name, data, "Q8_0", (8, 64))}, config)
    # In the file, pairs are neighbours: rows 0, 1 of a head belong together; here rows 0, 2 do.
    assert tensors[name].data.tolist() == data[[0, 2, 1, 3, 4, 6, 5, 7]].tolist()
    assert (tensors[name].format, tensors[name].shape) == ("Q8_0", (8, 64))
    assert len(tensors) == 1


@pytest.mark.parametrize("arch", ["qwen2", "qwen3"])
def test_only_llama_files_have_their_rows_moved(tmp_path: Path, arch: str) -> None:
    tensors = gguf_tensors(model_type=arch)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "a.gguf", arch, tensors=tensors))
    q = checkpoint.tensors["model.layers.1.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(values(q), tensors["blk.1.attn_q.weight"])
    assert checkpoint.config["model_type"] == arch


def test_output_weights_that_are_left_out_are_the_embedding(tmp_path: Path) -> None:
    tied = open_checkpoint(write_gguf(tmp_path / "a.gguf", tensors=gguf_tensors(tie_word_embeddings=True)))
    assert tied.config["tie_word_embeddings"]
    assert "lm_head.weight" not in tied.tensors


def test_a_llama_file_with_a_window_is_a_mistral(tmp_path: Path) -> None:
    config = open_checkpoint(write_gguf(tmp_path / "a.gguf", metadata={"llama.attention.sliding_window": 32})).config
    assert (config["model_type"], config["sliding_window"]) == ("mistral", 32)
    assert config["layer_types"] == ["sliding_attention"] * 2


def test_what_metadata_leaves_out_is_derived(tmp_path: Path) -> None:
    left_out = ("vocab_size", "attention.head_count_kv", "rope.freq_base")
    tensors = gguf_tensors(num_key_value_heads=4)
    path = write_gguf(tmp_path / "a.gguf", metadata={f"llama.{key}": None for key in left_out}, tensors=tensors)
    config = open_checkpoint(path).config
    assert (config["vocab_size"], config["num_key_value_heads"], config["rope_theta"]) == (80, 4, 10000.0)


def test_head_width_may_differ_from_width_by_heads(tmp_path: Path) -> None:
    keys = {"qwen3.attention.key_length": 32, "qwen3.attention.value_length": 32}
    tensors = gguf_tensors(model_type="qwen3", head_dim=32)
    assert open_checkpoint(write_gguf(tmp_path / "a.gguf", "qwen3", keys, tensors)).config["head_dim"] == 32


def test_rope_scaling_is_read_from_metadata(tmp_path: Path) -> None:
    def scaling(**keys: Any) -> dict[str, Any]:
        metadata = {f"llama.rope.scaling.{key}": value for key, value in keys.items()}
        return open_checkpoint(write_gguf(tmp_path / "a.gguf", metadata=metadata)).config["rope_scaling"]

    assert scaling(type="none", factor=4.0) is None
    assert scaling(type="linear", factor=4.0) == {"rope_type": "linear", "factor": 4.0}
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    assert scaling(type="yarn", factor=4.0, original_context_length=32, attn_factor=1.0, finetuned=True) == yarn
    stretched = scaling(type="yarn", factor=4.0, original_context_length=32, attn_factor=0.5, yarn_beta_fast=16.0)
    assert stretched["beta_fast"] == 16.0
    assert stretched["attention_factor"] == pytest.approx(0.5 * (0.1 * np.log(4) + 1))


def test_rope_factors_become_a_scaling_and_no_tensor(tmp_path: Path) -> None:
    factors = {"rope_freqs.weight": np.linspace(1, 8, 8, dtype=np.float32)}
    checkpoint = open_checkpoint(write_gguf(tmp_path / "a.gguf", tensors=gguf_tensors() | factors))
    assert checkpoint.config["rope_scaling"] == {"rope_type": "factors", "factors": list(range(1, 9))}
    assert len(checkpoint.tensors) == len(tensors_of(CONFIG))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general.architecture": "gemma"}, "general.architecture is 'gemma', supported are llama, qwen2, qwen3"),
        ({"llama.embedding_length": None}, "metadata llama.embedding_length is missing"),
        ({"llama.embedding_length": 1 << 30}, "metadata llama.embedding_length must be an integer in"),
        ({"llama.embedding_length": -64}, "metadata llama.embedding_length must be an integer in"),
        ({"llama.embedding_length": 64.0}, "metadata llama.embedding_length must be an integer in"),
        ({"llama.embedding_length": 128}, "tensor 'token_embd.weight' has shape .80, 64., the config says .80, 128."),
        ({"llama.block_count": 3}, "'blk.2.attn_norm.weight', .* and 6 more missing"),
        ({"llama.block_count": 1}, "'blk.1.attn_k.weight', .* in the file, which a llama model does not have"),
        ({"llama.attention.head_count": [4, 4]}, "metadata llama.attention.head_count must be an integer"),
        ({"llama.attention.head_count": 0}, "metadata llama.attention.head_count must be an integer"),
        ({"llama.attention.head_count_kv": 3}, "metadata llama.attention.head_count is 4, must be a multiple"),
        ({"llama.vocab_size": 81}, "'token_embd.weight' has shape"),
        ({"llama.rope.dimension_count": 8}, "metadata llama.rope.dimension_count is 8, must be the head's width, 16"),
        ({"llama.attention.value_length": 8}, "metadata llama.attention.value_length is 8"),
        ({"llama.expert_count": 8}, "metadata llama.expert_count is 8"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "layer_norm_rms_epsilon must be a number"),
        ({"llama.rope.scaling.type": "longrope"}, "scaling.type is 'longrope', supported are none, linear, yarn"),
        ({"llama.rope.scaling.type": "linear"}, r"metadata llama.rope.scaling.\*: factor is missing"),
        ({"llama.rope.scaling.alpha": 2.0}, "metadata llama.rope.scaling.alpha is not supported"),
        (
            {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.attn_factor": "1"},
            "factor is missing|attention_factor",
        ),
        ({"tokenizer.ggml.eos_token_id": 81}, r"an end token must be an id in \[0, 80\), is 81"),
        ({"tokenizer.ggml.eot_token_id": "2"}, "an end token must be an id"),
    ],
)
def test_metadata_that_cannot_work_is_an_error_that_names_it(
    tmp_path: Path, metadata: dict[str, Any], message: str
) -> None:
    arch = metadata.pop("general.architecture", "llama")
    path = write_gguf(tmp_path / "a.gguf", arch, metadata, gguf_tensors())
    with pytest.raises(WeightsError, match=message):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"blk.0.attn_q.bias": np.zeros(64, np.float32)}, {}, "tensor 'blk.0.attn_q.bias' in the file, which"),
        ({"rope_freqs.weight": np.ones(7, np.float32)}, {}, "has 7 factors, must have 8"),
        ({"rope_freqs.weight": np.ones((2, 4), np.float32)}, {}, "'rope_freqs.weight' must be F32"),
        ({"rope_freqs.weight": np.ones(8, np.float16)}, {}, "'rope_freqs.weight' must be F32"),
        ({"rope_freqs.weight": np.ones(1 << 16, np.float32)}, {}, "'rope_freqs.weight' must be F32 and at most"),
        ({"rope_freqs.weight": np.full(8, np.nan, np.float32)}, {}, "factors must be a list of positive numbers"),
        ({"rope_freqs.weight": np.ones(8, np.float32)}, {"llama.rope.scaling.type": "linear"}, "only one is supported"),
    ],
)
def test_tensors_that_would_be_ignored_or_misread_are_refused(
    tmp_path: Path, tensors: dict[str, np.ndarray[Any, Any]], metadata: dict[str, Any], message: str
) -> None:
    with pytest.raises(WeightsError, match=message):
        open_checkpoint(write_gguf(tmp_path / "a.gguf", metadata=metadata, tensors=gguf_tensors() | tensors))


def test_windows_of_qwen_files_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", "qwen2", {"qwen2.attention.sliding_window": 32})
    with pytest.raises(WeightsError, match=r"qwen2\.attention\.sliding_window is not supported"):
        open_checkpoint(path)


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


def test_tensors_that_do_not_fit_the_config_are_named(tmp_path: Path) -> None:
    tensors = tensors_of(CONFIG)
    lost = {name: value for name, value in tensors.items() if name != "lm_head.weight"}
    with pytest.raises(WeightsError, match=r"tensor 'lm_head\.weight' missing"):
        open_checkpoint(write_folder(tmp_path / "a", CONFIG, lost))
    with pytest.raises(WeightsError, match=r"tensor 'adapter' in the file, which a llama model does not have"):
        open_checkpoint(write_folder(tmp_path / "a", CONFIG, tensors | {"adapter": np.ones(3, np.float32)}))
    flat = tensors | {"model.norm.weight": np.ones((1, 64), np.float32)}
    with pytest.raises(WeightsError, match=r"'model\.norm\.weight' has shape \(1, 64\), the config says \(64,\)"):
        open_checkpoint(write_folder(tmp_path / "a", CONFIG, flat))


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


# -- ends, fingerprints, paths -------------------------------------------------------------------


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


def test_a_fingerprint_follows_the_content_alone(tmp_path: Path) -> None:
    first = open_checkpoint(write_folder(tmp_path / "a", CONFIG)).fingerprint
    copy = open_checkpoint(shutil.copytree(tmp_path / "a", tmp_path / "copy")).fingerprint
    assert first == copy
    tensors = tensors_of(CONFIG)
    tensors["model.layers.1.mlp.down_proj.weight"][-8:] *= 2  # samples reach to the last byte
    assert open_checkpoint(write_folder(tmp_path / "b", CONFIG, tensors)).fingerprint != first
    assert open_checkpoint(write_folder(tmp_path / "c", CONFIG | {"rope_theta": 7.0})).fingerprint != first


def test_a_folder_with_one_gguf_file_is_that_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf")
    assert open_checkpoint(tmp_path).path == path
    write_gguf(tmp_path / "b.gguf")
    with pytest.raises(UsageError, match=r"holds 2 GGUF files: name one of a\.gguf, b\.gguf"):
        open_checkpoint(tmp_path)


def test_a_gguf_file_is_known_by_its_content_too(tmp_path: Path) -> None:
    blob = write_gguf(tmp_path / "a.gguf").rename(tmp_path / "sha256-1234")
    assert open_checkpoint(blob).path == blob


def test_a_path_that_is_no_model_is_an_error_with_a_cure(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        open_checkpoint(tmp_path / "missing")
    with pytest.raises(UsageError, match=r"holds neither a config\.json nor a GGUF file"):
        open_checkpoint(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UsageError, match="is not a GGUF file"):
        open_checkpoint(tmp_path / "notes.txt")
    folder = write_folder(tmp_path / "a", CONFIG)
    with pytest.raises(UsageError, match="is one file of a Hugging Face folder: give the folder"):
        open_checkpoint(folder / "model.safetensors")
