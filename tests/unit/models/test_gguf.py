from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outpace.errors import WeightsError
from outpace.models import architectures, open_checkpoint
from outpace.types import RawTensor
from tests.unit.weights.tiny import CONFIG, tensors_of, write_gguf


def values(tensor: RawTensor) -> np.ndarray[Any, Any]:
    return tensor.data.reshape(-1).view("<f4").reshape(tensor.shape)


def gguf_tensors(**changes: Any) -> dict[str, np.ndarray[Any, Any]]:
    return tensors_of(CONFIG | changes, names="gguf")


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


def test_a_llama_file_with_experts_is_a_mixtral_and_its_names_are_those_of_its_folders(tmp_path: Path) -> None:
    mixtral = architectures()["mixtral"]
    assert mixtral.folder_name("model.layers.1.mlp.experts.3.down_proj.weight") == (
        "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    )
    assert mixtral.folder_name("model.layers.0.mlp.gate.weight") == "model.layers.0.block_sparse_moe.gate.weight"
    metadata = {"llama.expert_count": 5, "llama.expert_used_count": 2}
    path = write_gguf(tmp_path / "a.gguf", metadata=metadata)
    with pytest.raises(WeightsError, match=r"ffn_gate_inp\.weight.* missing"):
        open_checkpoint(path)  # the tensors of a llama


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
        ({"general.architecture": "gemma"}, "general.architecture is 'gemma', supported are "),
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
        ({"general.architecture": "qwen2", "qwen2.expert_count": 8}, "metadata qwen2.expert_count is 8"),
        ({"llama.expert_count": "8"}, "metadata llama.expert_count must be an integer"),
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
    with pytest.raises(WeightsError, match=r"qwen2\.attention\.sliding_window is 32, not supported for qwen2"):
        open_checkpoint(path)


# -- what other architectures say in metadata and tensors ------------------------------------------


def opened(
    path: Path, arch: str, model_type: str, metadata: dict[str, Any], more: dict[str, Any], **changes: Any
) -> Any:
    """Return the checkpoint of a file of another architecture, with further metadata and tensors."""
    tensors = tensors_of(CONFIG | {"model_type": model_type, "head_dim": 16} | changes, names="gguf") | more
    return open_checkpoint(write_gguf(path / "a.gguf", arch, {f"{arch}.attention.key_length": 16} | metadata, tensors))


def factors(short: int = 8, long: int = 8, kind: Any = np.float32) -> dict[str, Any]:
    return {f"rope_factors_{name}.weight": np.full(n, 2, kind) for name, n in (("short", short), ("long", long))}


ORIGINAL = {"phi3.rope.scaling.original_context_length": 64}


def test_longrope_is_two_tensors_and_a_factor(tmp_path: Path) -> None:
    metadata = ORIGINAL | {"phi3.rope.scaling.attn_factor": 1.5, "phi3.attention.sliding_window": 0}
    checkpoint = opened(tmp_path, "phi3", "phi3", metadata, factors())
    assert checkpoint.config["rope_scaling"] == {
        "rope_type": "longrope",
        "short_factor": [2.0] * 8,
        "long_factor": [2.0] * 8,
        "attention_factor": 1.5,
    }
    assert checkpoint.config["original_max_position_embeddings"] == 64
    assert checkpoint.config["sliding_window"] is None
    assert not any("rope" in name for name in checkpoint.tensors)
    assert opened(tmp_path, "phi3", "phi3", ORIGINAL, {}).config["rope_scaling"] is None


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        (ORIGINAL, factors(short=7), "has 7 short_factor, must have 8"),
        (ORIGINAL, factors(kind=np.float16), "must be F32"),
        (ORIGINAL, factors() | {"rope_factors_long.weight": np.full(8, np.inf, np.float32)}, "list of positive"),
        (ORIGINAL, factors() | {"rope_factors_long.weight": np.ones((2, 4), np.float32)}, "must be F32"),
        (ORIGINAL | {"phi3.rope.scaling.attn_factor": "1"}, factors(), "attention_factor must be a number"),
        ({"phi3.rope.scaling.original_context_length": 1}, factors(), "original_context_length must be an integer"),
        ({"phi3.rope.dimension_count": 17}, {}, "dimension_count is 17, must be at most the head's width, 16"),
        ({"phi3.rope.dimension_count": 0}, {}, "dimension_count is 0, must be at most"),
        ({"phi3.rope.dimension_count": "8"}, {}, "dimension_count is '8', must be at most"),
        ({"phi3.rope.dimension_count": 7}, {}, "7 channels of a head cannot turn as pairs"),
        ({"phi3.expert_count": 16}, {}, "phi3.expert_count is 16, not supported for phi3"),
    ],
)
def test_what_a_phi3_file_cannot_say_is_an_error(
    tmp_path: Path, metadata: dict[str, Any], tensors: dict[str, Any], message: str
) -> None:
    with pytest.raises(WeightsError, match=message):
        opened(tmp_path, "phi3", "phi3", metadata, tensors)


def test_one_list_of_factors_alone_is_refused(tmp_path: Path) -> None:
    alone = {"rope_factors_long.weight": np.ones(8, np.float32)}
    with pytest.raises(WeightsError, match=r"tensor 'rope_factors_short.weight' is missing"):
        opened(tmp_path, "phi3", "phi3", ORIGINAL, alone)


GEMMA = {"gemma3.attention.sliding_window": 32}


def test_layers_with_a_window_are_by_rule_or_listed(tmp_path: Path) -> None:
    assert opened(tmp_path, "gemma3", "gemma3_text", GEMMA, {}, tie_word_embeddings=True).config["layer_types"] == [
        "sliding_attention",
        "sliding_attention",
    ]
    listed = GEMMA | {"gemma3.attention.sliding_window_pattern": [True, False]}
    config = opened(tmp_path, "gemma3", "gemma3_text", listed, {}, tie_word_embeddings=True).config
    assert config["layer_types"] == ["sliding_attention", "full_attention"]
    assert config["query_pre_attn_scalar"] == 16.0


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"gemma3.attention.sliding_window_pattern": 6}, "sliding_window_pattern is 6, must be a list of booleans"),
        ({"gemma3.attention.sliding_window_pattern": [1, 0]}, "must be a list of booleans"),
        ({"gemma3.attention.sliding_window_pattern": [True]}, "layer_types must be a list of 2"),
        ({"gemma3.attention.sliding_window": -1}, "sliding_window must be an integer"),
        ({"gemma3.rope.freq_base_swa": 0.0}, "rope.freq_base_swa must be a number"),
        ({"gemma3.final_logit_softcapping": -1.0}, "final_logit_softcapping must be a number"),
        ({"gemma3.attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0, not supported for gemma3"),
    ],
)
def test_what_a_gemma3_file_cannot_say_is_an_error(tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        opened(tmp_path, "gemma3", "gemma3_text", GEMMA | metadata, {}, tie_word_embeddings=True)


def test_multipliers_of_another_architecture_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"metadata llama.residual_scale is 0.5, not supported for llama"):
        open_checkpoint(write_gguf(tmp_path / "a.gguf", metadata={"llama.residual_scale": 0.5}, tensors=gguf_tensors()))


def test_biases_are_found_by_their_tensors(tmp_path: Path) -> None:
    tensors = gguf_tensors(attention_bias=True, mlp_bias=True)
    config = open_checkpoint(write_gguf(tmp_path / "a.gguf", tensors=tensors)).config
    assert config["attention_bias"]
    assert config["mlp_bias"]
