"""Write an `eagle` drafter in the layout of speculators, as vLLM loads it.

Nearly everything there has a place there. Two things are folded into others, exactly:

* Our taps are RMS-normalised without weights: `fc_norm`, with weights of 1.
* Our last tap is added to fc's product: fc gets the identity in the columns of that tap.

Rows of the head come in the order of their tokens, as code that trains such drafters on expects; which of ours are
always looked at stands in `outpace_fixed_tokens`, which others ignore (they look at all). What cannot be said there is
refused by name. Values are written as F32: what ours stores in blocks of 8 bits is exact there.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from outpace.drafters.layouts.eagle3 import FIXED_TOKENS
from outpace.errors import UsageError
from outpace.models.config import ModelConfig
from outpace.models.eagle import EagleConfig
from outpace.ops.formats import dequantise
from outpace.types import RawTensor
from outpace.weights.drafter import DrafterCheckpoint
from outpace.weights.safetensors import SINGLE

Arrays = dict[str, NDArray[Any]]

LAYOUTS = ("speculators",)
_NAMES = {
    **{"token_norm": "layers.0.input_layernorm.weight", "feature_norm": "layers.0.hidden_norm.weight"},
    **{
        "mlp_norm": "layers.0.post_attention_layernorm.weight",
        "head_norm": "norm.weight",
        "tap_norm": "input_norm.weight",
    },
    **{f"w{name}": f"layers.0.self_attn.{name}_proj.weight" for name in "qkvo"},
    **{f"b{name}": f"layers.0.self_attn.{name}_proj.bias" for name in "qkvo"},
    **{f"{name}_norm": f"layers.0.self_attn.{name}_norm.weight" for name in "qk"},
    **{name: f"layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")},
    "embedding": "embed_tokens.weight",
}
_DTYPES = {"float32": "F32", "float16": "F16", "int64": "I64", "bool": "BOOL"}


def export_speculators(
    file: DrafterCheckpoint, config: EagleConfig, target: Mapping[str, Any], name: str, folder: Path
) -> None:
    """Write config.json and model.safetensors into a folder.

    target: the target's own config, in Hugging Face's words. name: what others may call the target. Raises UsageError
    for a drafter that the layout has no words for, and for a folder that holds something already.
    """
    if problems := _unsaid(config, target):
        raise UsageError(f"{file.path}: the layout of speculators has no words for {'; '.join(problems)}")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UsageError(f"{folder}: must be an empty folder, or a new one")
    write_safetensors(folder / SINGLE, _tensors(file.tensors, config, target["vocab_size"]))
    description = _config(file, config, target, name)
    with _whole(folder / "config.json") as out:
        out.write((json.dumps(description, indent=2) + "\n").encode())


def _unsaid(config: EagleConfig, target: Mapping[str, Any]) -> list[str]:
    """Return what of a drafter cannot be said."""
    scaling = target["rope_scaling"] or {}
    found = {
        "a width other than the target's": config.width not in (None, target["hidden_size"]),
        "a residual of the last tap beside a norm over all taps": config.has_tap_residual
        and config.tap_norm == "joint",
        "a head that is the target's": not config.has_head,
        "rotary factors of each pair (GGUF's rope_freqs)": scaling.get("rope_type") == "factors",
        "rotary frequencies of its own": config.inv_freq not in (None, _frequencies(target)),
    }
    return [what for what, is_so in found.items() if is_so]


def _frequencies(target: Mapping[str, Any]) -> tuple[float, ...]:
    return ModelConfig.from_hf(target).inv_freq


def _config(file: DrafterCheckpoint, config: EagleConfig, target: Mapping[str, Any], name: str) -> dict[str, Any]:
    rope = {"rope_type": "default"} | (target["rope_scaling"] or {}) | {"rope_theta": target["rope_theta"]}
    layer = {
        **{"model_type": "qwen3" if config.has_head_norms else "llama", "hidden_act": "silu", "mlp_bias": False},
        **{"vocab_size": target["vocab_size"], "hidden_size": target["hidden_size"]},
        **{"intermediate_size": file.tensors["gate"].shape[0], "num_hidden_layers": 1},
        **{"num_attention_heads": config.num_heads, "num_key_value_heads": config.num_kv_heads},
        **{"head_dim": config.head_width, "max_position_embeddings": target["max_position_embeddings"]},
        **{"rms_norm_eps": target["rms_norm_eps"] if config.eps is None else config.eps},
        **{"rope_parameters": rope, "attention_bias": config.has_biases, "tie_word_embeddings": False},
        "num_aux_hidden_states": len(config.taps),  # vLLM does not count the layers' ids, and takes three
    }
    if config.window is not None:
        layer |= {"layer_types": ["sliding_attention"], "sliding_window": config.window, "use_sliding_window": True}
    extra = (
        {}
        if config.num_fixed == len(config.head_tokens)
        else {FIXED_TOKENS: list(config.head_tokens[: config.num_fixed])}
    )
    proposal = {"proposal_type": "greedy", "speculative_tokens": 4, "verifier_accept_k": 1, "accept_tolerance": 0.0}
    return {
        **{"architectures": ["Eagle3DraftModel"], "speculators_model_type": "eagle3", "dtype": "float32"},
        "draft_vocab_size": len(config.head_tokens),
        "eagle_aux_hidden_state_layer_ids": list(config.taps),
        **{"fc_norm": config.tap_norm in ("unit", "each"), "norm_before_fc": config.tap_norm == "joint"},
        **{"norm_before_residual": config.is_residual_normed, "norm_output": config.is_output_normed},
        **{"target_hidden_size": None, "tie_word_embeddings": False, "embed_requires_grad": False},
        "transformer_layer_config": layer,
        "speculators_config": {
            **{"algorithm": "eagle3", "default_proposal_method": "greedy", "proposal_methods": [proposal]},
            "verifier": {"name_or_path": name, "architectures": [_architecture(target["model_type"])]},
        },
        **extra,
    }


def _architecture(model_type: str) -> str:
    return f"{model_type.removesuffix('_text').title().replace('_', '')}ForCausalLM"


def _tensors(stored: Mapping[str, RawTensor], config: EagleConfig, vocab_size: int) -> Arrays:
    values = {name: dequantise(tensor).astype(np.float32) for name, tensor in stored.items()}
    fc, head = values["fc"], values["head"]
    if config.has_tap_residual:
        fc = fc.copy()
        fc[:, -len(fc) :] += np.eye(len(fc), dtype=np.float32)
    tokens = np.array(config.head_tokens, np.int64)
    order = np.argsort(tokens)
    tensors: Arrays = {"fc.weight": fc, "lm_head.weight": head[order]}
    tensors |= {_NAMES[name]: value for name, value in values.items() if name in _NAMES}
    width = fc.shape[1] // len(config.taps)
    for i in range(len(config.taps)) if config.tap_norm in ("unit", "each") else ():
        tensors[f"fc_norm.{i}.weight"] = values.get(f"tap_norm.{i}", np.ones(width, np.float32))
    if len(tokens) < vocab_size:
        tensors["d2t"] = tokens[order] - np.arange(len(tokens))
        tensors["t2d"] = np.isin(np.arange(vocab_size), tokens)
    return tensors


def write_safetensors(path: Path, tensors: Arrays) -> None:
    """Write a safetensors file whole, or none."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, value in tensors.items():
        end = begin + value.nbytes
        dtype = _DTYPES[value.dtype.name]
        header[name] = {"dtype": dtype, "shape": list(value.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with _whole(path) as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for value in tensors.values():
            out.write(np.ascontiguousarray(value, value.dtype.newbyteorder("<")).tobytes())


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write; it has its name once all of it is there."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as out:
            yield out
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
