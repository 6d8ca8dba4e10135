"""GGUF files as llama.cpp's converter writes them: the same network as the folder's, for each architecture.

Names come from the `gguf` package. What the converter does to tensors (rows of Q and K as pairs, 1 added to norms) and
which metadata it writes is said here a second time, apart from the code under test.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from outpace import models
from outpace.models import architectures, open_checkpoint
from outpace.models.to_gguf import gguf_network
from outpace.ops.formats import dequantise
from outpace.ops.reference import ReferenceOps
from outpace.types import Segment
from tests.networks import MASKED, NETWORKS
from tests.tiny import built, tiny_config, tiny_values
from tests.unit.weights.tiny import write_gguf

PAIRS = (
    "llama",
    "mistral",
    "mixtral",
    "ministral3",
    "granite",
    "smollm3",
    "llada",
)  # Q and K are permuted in their files

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: NETWORKS[name] for name in NETWORKS if NETWORKS[name][0] in ("granite", "phi3")},
    "olmo2": ("olmo2", NETWORKS["olmo2, biases"][1] | {"attention_bias": False}),  # llama.cpp reads no biases of it
    **{name: NETWORKS[name] for name in ("llama", "llama, biases", "mistral", "qwen2", "qwen3", "glm4", "smollm3")},
    "olmo3": ("olmo3", NETWORKS["olmo3"][1]),
    "qwen3_moe": NETWORKS["qwen3_moe"],
    "mixtral": NETWORKS["mixtral"],
    "gpt_oss": NETWORKS["gpt_oss"],
    "ministral3": NETWORKS["ministral3"],
    **{model_type: (model_type, {}) for model_type in MASKED},
    "gemma3": ("gemma3_text", NETWORKS["gemma3_text"][1] | {"query_pre_attn_scalar": 16.0}),
    "gemma3, listed": (
        "gemma3_text",
        NETWORKS["gemma3_text, soft cap, linear, listed"][1]
        | {"query_pre_attn_scalar": 16.0, "attention_bias": False, "tie_word_embeddings": True},
    ),
}


def metadata(arch: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return what the converter writes of a config."""
    width = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    rotary = int(width * config.get("partial_rotary_factor", 0.5 if arch == "glm4" else 1.0))
    entries: dict[str, Any] = {
        "vocab_size": config["vocab_size"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "block_count": config["num_hidden_layers"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": width,
        "attention.value_length": width,
        "context_length": config["max_position_embeddings"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": config["rope_theta"],
        "rope.dimension_count": rotary,
    }
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind in ("linear", "yarn"):
        entries |= {"rope.scaling.type": kind, "rope.scaling.factor": scaling["factor"]}
    if kind == "yarn":
        entries["rope.scaling.original_context_length"] = scaling["original_max_position_embeddings"]
    return {f"{arch}.{key}": value for key, value in (entries | OWN.get(arch, lambda c: {})(config)).items()}


def phi3(config: dict[str, Any]) -> dict[str, Any]:
    original = config.get("original_max_position_embeddings", 4096)
    own = {
        "rope.scaling.original_context_length": original,
        "attention.sliding_window": config.get("sliding_window", 0),
    }
    if config.get("rope_scaling"):
        stretched = config["max_position_embeddings"] / original
        own["rope.scaling.attn_factor"] = math.sqrt(1 + math.log(stretched) / math.log(original))
    return own


def gemma3(config: dict[str, Any]) -> dict[str, Any]:
    own = {"attention.sliding_window": config["sliding_window"], "rope.freq_base_swa": config["rope_local_base_freq"]}
    if "layer_types" in config:
        own["attention.sliding_window_pattern"] = [kind == "sliding_attention" for kind in config["layer_types"]]
        own["final_logit_softcapping"] = config["final_logit_softcapping"]
    return own


def olmo2(config: dict[str, Any]) -> dict[str, Any]:
    if "sliding_window" not in config:
        return {}
    pattern = [(i + 1) % 4 != 0 for i in range(config["num_hidden_layers"])]
    return {
        "attention.sliding_window": config["sliding_window"],
        "attention.sliding_window_pattern": pattern,
    }


def llama(config: dict[str, Any]) -> dict[str, Any]:
    own = {"attention.sliding_window": config["sliding_window"]} if config.get("sliding_window") else {}
    if "num_local_experts" in config:
        own |= {"expert_count": config["num_local_experts"], "expert_used_count": config["num_experts_per_tok"]}
    return own


OWN = {
    "phi3": phi3,
    "gemma3": gemma3,
    "olmo2": olmo2,
    "llama": llama,
    "mistral3": lambda c: {
        "attention.temperature_scale": c["rope_parameters"]["llama_4_scaling_beta"],
        "rope.scaling.yarn_log_multiplier": c["rope_parameters"]["mscale_all_dim"],
    },
    "gpt-oss": lambda c: {
        "expert_count": c["num_local_experts"],
        "expert_used_count": c["num_experts_per_tok"],
        "expert_feed_forward_length": c["intermediate_size"],
        "attention.sliding_window": c["sliding_window"],
    },
    "qwen3moe": lambda c: {
        "expert_count": c["num_experts"],
        "expert_used_count": c["num_experts_per_tok"],
        "expert_feed_forward_length": c["moe_intermediate_size"],
    },
    "granite": lambda c: {
        "embedding_scale": c["embedding_multiplier"],
        "attention.scale": c["attention_multiplier"],
        "residual_scale": c["residual_multiplier"],
        "logit_scale": c["logits_scaling"],
    },
}


def stacked(values: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Return the tensors with those of all experts as one."""
    result: dict[str, Any] = {}
    for name, x in values.items():
        before, mark, own = name.partition(".experts.")
        if own.startswith(("gate_up_proj", "down_proj")):  # gpt-oss: [E, in, out], gate and up in turns
            kind = "bias" if name.endswith("_bias") else "weight"
            turned = x if kind == "bias" else x.swapaxes(1, 2)
            parts = (
                {"gate_proj": turned[:, ::2], "up_proj": turned[:, 1::2]} if "gate_up" in own else {"down_proj": turned}
            )
            result |= {f"{before}.experts.{part}.{kind}": numbers for part, numbers in parts.items()}
        elif name.endswith("sinks"):
            result[name + ".weight"] = x
        elif mark:
            result.setdefault(f"{before}.experts.{own.partition('.')[2]}", []).append(x)
        else:
            result[name] = x
    return {name: np.stack(x) if isinstance(x, list) else x for name, x in result.items()}


def converted(arch: str, config: dict[str, Any], values: dict[str, NDArray[np.float32]]) -> dict[str, Any]:
    """Return a file's tensors."""
    (key,) = (key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(key, config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    tensors = {}
    for name, x in stacked(values).items():
        part = next((part for part in heads if part in name), None)
        if part and config["model_type"] in PAIRS:
            halves = x.reshape(heads[part], 2, x.shape[0] // heads[part] // 2, *x.shape[1:])
            x = halves.swapaxes(1, 2).reshape(x.shape)
        if arch == "gemma3" and name.endswith("norm.weight"):
            x = x + 1
        tensors[names.get_name(name, (".weight", ".bias"))] = np.ascontiguousarray(x)
    scaling = config.get("rope_scaling") or {}
    if scaling.get("type") == "longrope":
        tensors |= {f"rope_factors_{n}.weight": np.float32(scaling[f"{n}_factor"]) for n in ("long", "short")}
    return tensors


def logits(model: models.Transformer, ops: ReferenceOps, tokens: list[int]) -> NDArray[np.float32]:
    plan = ops.plan([Segment((1, 0, 2), 0, tokens, num_scored=len(tokens))], 32)
    return ops.numpy(model.forward(plan, ops.kv_alloc(model.spec("f32"), 3))[0])


@pytest.mark.parametrize("name", CASES)
def test_a_converted_file_is_the_network_of_the_folder(tmp_path: Path, name: str) -> None:
    model_type, overrides = CASES[name]
    config = tiny_config(model_type, **overrides)
    if (config.get("rope_scaling") or {}).get("rope_type") == "llama3":
        config["rope_scaling"] = None  # in files, a tensor: see test_models_parity
    arch, ops = architectures()[model_type].gguf, ReferenceOps()
    folder = built(ops, config, spread=1.0)
    tensors = converted(arch, config, tiny_values(config, spread=1.0))
    bare = {"tokenizer.ggml.tokens": None, "tokenizer.ggml.eos_token_id": None}
    if model_type in MASKED:
        bare["tokenizer.ggml.mask_token_id"] = config["mask_token_id"]
    checkpoint = open_checkpoint(write_gguf(tmp_path / "a.gguf", arch, metadata(arch, config) | bare, tensors))
    assert checkpoint.config["model_type"] == model_type
    file = models.build(checkpoint.config, checkpoint.tensors, ops, config.get("context"))
    tokens = np.random.default_rng(0).integers(0, 97, 90).tolist()
    expected = logits(folder, ops, tokens)
    assert np.abs(logits(file, ops, tokens) - expected).max() < 1e-4 * np.abs(expected).max()
    assert file.config.windows == folder.config.windows


NOT_WRITTEN = ("Dream", "llada")  # networks that fill masks


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][0] not in NOT_WRITTEN])
def test_what_outpace_writes_is_what_the_converter_writes(tmp_path: Path, name: str) -> None:
    model_type, overrides = CASES[name]
    config = tiny_config(model_type, **overrides)
    values = tiny_values(config, spread=1.0)
    (tmp_path / "config.json").write_text(json.dumps(config))
    names = architectures()[model_type]
    save_file({names.folder_name(name): x for name, x in values.items()}, tmp_path / "model.safetensors")
    found, tensors = gguf_network(open_checkpoint(tmp_path))
    arch = architectures()[model_type].gguf
    is_llama3 = (config.get("rope_scaling") or {}).get("rope_type") == "llama3"
    expected = converted(arch, config, values)
    assert {tensor.name for tensor in tensors} - {"rope_freqs.weight"} == expected.keys()
    assert is_llama3 == any(tensor.name == "rope_freqs.weight" for tensor in tensors)
    for tensor in tensors:
        if tensor.name != "rope_freqs.weight":
            assert np.array_equal(dequantise(tensor.read()), expected[tensor.name]), tensor.name
    if arch == "mistral3":  # llama.cpp would multiply by it once more
        assert "mistral3.rope.scaling.attn_factor" not in found
    for key, value in metadata(arch, config).items():
        if value not in (0, None):
            assert found[key] == pytest.approx(value), key


def test_llama3_scaling_becomes_the_divisors_of_frequencies(tmp_path: Path) -> None:
    """transformers has the formula; a file's divisors must turn plain frequencies into its."""
    config = tiny_config("llama", **NETWORKS["llama, llama3"][1])
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tiny_values(config), tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    (factors,) = (t for t in gguf_network(checkpoint)[1] if t.name == "rope_freqs.weight")
    plain = 500000.0 ** (-np.arange(0, 12, 2) / 12)
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(**config, head_dim=12), "cpu")
    assert np.allclose(plain / dequantise(factors.read()), expected.numpy(), rtol=1e-6)


def test_every_architecture_is_there() -> None:
    assert {model_type for model_type, _ in CASES.values()} == architectures().keys()
