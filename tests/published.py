"""Tiny drafters in the layouts that others publish: what `speculators` wrote (tests/parity/published), and from that
the same network as SafeAILab's and llama.cpp's tools write it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from outpace import LanguageModel
from outpace.ops.formats import dequantise
from outpace.train.export import write_drafter
from tests.eagle import tiny_eagle_config, tiny_eagle_tensors

PUBLISHED = Path(__file__).with_name("parity") / "published"
SPECULATORS, DFLASH = PUBLISHED / "speculators", PUBLISHED / "dflash" / "plain"
VOCAB, WIDTH, TAPS, HEADS, KV_HEADS, HEAD_WIDTH = 31, 16, (1, 2, 3), 4, 2, 8

Arrays = dict[str, NDArray[Any]]

_GGUF_NAMES = {
    **{"fc": "fc", "norm": "output_norm", "lm_head": "output", "embed_tokens": "token_embd"},
    **{"layers.0.input_layernorm": "blk.0.attn_norm", "layers.0.hidden_norm": "blk.0.attn_norm_2"},
    **{"layers.0.post_attention_layernorm": "blk.0.ffn_norm", "input_norm": "enc.output_norm"},
    **{f"layers.0.self_attn.{name}_proj": f"blk.0.attn_{name}" for name in "qkv"},
    **{"layers.0.self_attn.o_proj": "blk.0.attn_output"},
    **{f"layers.0.mlp.{name}_proj": f"blk.0.ffn_{name}" for name in ("gate", "up", "down")},
}


def tensors_of(name: str) -> Arrays:
    """Return the tensors that speculators wrote."""
    return load_file(SPECULATORS / name / "model.safetensors")


def flat_config(name: str, **changes: Any) -> dict[str, Any]:
    """Return the config of the same drafter as SafeAILab, AngelSlim and SpecForge write it."""
    nested = json.loads((SPECULATORS / name / "config.json").read_text())
    config = {
        **nested["transformer_layer_config"],
        **{"architectures": ["Eagle3LlamaForCausalLM"], "draft_vocab_size": nested["draft_vocab_size"]},
    }
    return {key: value for key, value in (config | changes).items() if value is not ...}


def flat_tensors(name: str) -> Arrays:
    """Return the tensors by SafeAILab's names."""
    return {key.replace("layers.0.", "midlayer."): value for key, value in tensors_of(name).items()}


def write_folder(folder: Path, config: Mapping[str, Any], tensors: Arrays) -> Path:
    """Write a drafter's folder with safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    save_file(tensors, folder / "model.safetensors")
    return folder


def copy_speculators(name: str, folder: Path, **changes: Any) -> Path:
    """Write what speculators wrote once more, with other entries in its config; `...` leaves one out."""
    config = json.loads((SPECULATORS / name / "config.json").read_text()) | changes
    return write_folder(folder, {key: v for key, v in config.items() if v is not ...}, tensors_of(name))


def dflash_config(**changes: Any) -> dict[str, Any]:
    """Return the config of the DFlash drafter that z-lab's package wrote; `...` leaves an entry out."""
    config = json.loads((DFLASH / "config.json").read_text()) | changes
    return {key: value for key, value in config.items() if value is not ...}


def dflash_tensors() -> Arrays:
    """Return its tensors."""
    return load_file(DFLASH / "model.safetensors")


def nested_dflash_config(**changes: Any) -> dict[str, Any]:
    """Return the config of the same drafter as speculators writes it."""
    flat = dflash_config()
    layer = {key: v for key, v in flat.items() if key not in ("dflash_config", "block_size", "num_target_layers")}
    config = {
        **{"speculators_model_type": "dflash", "transformer_layer_config": layer, "block_size": 5},
        **{"aux_hidden_state_layer_ids": [1, 2, 3], "mask_token_id": 29, "draft_vocab_size": VOCAB},
        "speculators_config": {"verifier": {"name_or_path": "owner/model", "architectures": ["Qwen3ForCausalLM"]}},
    }
    return {key: value for key, value in (config | changes).items() if value is not ...}


def gguf_tensors(name: str) -> Arrays:
    """Return the tensors as llama.cpp's converter writes them: rows that turn together are neighbours."""
    found, result = tensors_of(name), {}
    for theirs, value in found.items():
        heads = {"q": HEADS, "k": KV_HEADS}.get(theirs.removeprefix("layers.0.self_attn.")[:1])
        if theirs.endswith("_proj.weight") and "self_attn" in theirs and heads is not None:
            value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        if theirs == "d2t":
            result["d2t"] = value + np.arange(len(value))
        elif theirs != "t2d":
            result[f"{_GGUF_NAMES[theirs.removesuffix('.weight')]}.weight"] = value
    return result


def gguf_entries(**changes: Any) -> dict[str, Any]:
    """Return a drafter's metadata without "eagle3."; `...` leaves an entry out."""
    entries = {
        **{"embedding_length": WIDTH, "feed_forward_length": 24, "block_count": 1, "context_length": 64},
        **{"attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS, "attention.key_length": HEAD_WIDTH},
        **{"attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 10000.0, "vocab_size": VOCAB},
        **{"target_layers": list(TAPS), "target_hidden_size": WIDTH},
    }
    return {name: value for name, value in (entries | changes).items() if value is not ...}


def write_gguf(
    path: Path, entries: Mapping[str, Any], tensors: Arrays, tokenizer: Mapping[str, Any] | None = None
) -> Path:
    """Write a GGUF file of the architecture eagle3."""
    writer = gguf.GGUFWriter(path, "eagle3")
    metadata = {f"eagle3.{name}": value for name, value in entries.items()} | dict(tokenizer or {})
    for name, value in metadata.items():
        add: Any = {str: writer.add_string, bool: writer.add_bool, float: writer.add_float32, list: writer.add_array}
        add.get(type(value), writer.add_uint32)(name, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_ours(lm: LanguageModel, path: Path, **more: Any) -> Path:
    """Write a random eagle drafter for a loaded model in our own layout, its values as they are. more: entries."""
    model = lm.runner.model
    config = tiny_eagle_config(model)
    entries: dict[str, Any] = {
        **{"kind": "eagle", "target.name": "Tiny", "target.fingerprint": "ab"},
        **{"target.vocabulary": lm.tokenizer.fingerprint, "target.model_type": model.config.model_type},
        **{f"target.{name}": getattr(model.config, name) for name in ("vocab_size", "width", "num_layers")},
        **{name: getattr(config, name) for name in ("num_heads", "num_kv_heads", "head_width", "num_fixed")},
        **{name: list(getattr(config, name)) for name in ("taps", "head_tokens")},
        **more,
    }
    tensors = tiny_eagle_tensors(config, model)
    values = {name: dequantise(tensor).astype(np.float32).reshape(tensor.shape) for name, tensor in tensors.items()}
    write_drafter(path, entries, values, "F32")
    return path


def write_published(model: Path, path: Path, **changes: Any) -> Path:
    """Write a random EAGLE-3 drafter for the model in a folder, in SafeAILab's layout."""
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
