"""Say in Hugging Face words what a GGUF file's metadata say of its network."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from outpace.errors import WeightsError
from outpace.models.architecture import Architecture, architectures
from outpace.models.config import Config
from outpace.models.keys import FULL, SLIDING
from outpace.weights.gguf import GGUFFile
from outpace.weights.values import shown

ROPE_FACTORS = "rope_freqs.weight"
_MOST_FACTORS = 1 << 11

KEYS = {  # our key -> metadata key, after the architecture
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "vocab_size": "vocab_size",
}
_OPTIONAL = {"num_key_value_heads", "head_dim", "rope_theta", "vocab_size"}
_ROTARY_WIDTH = "partial_rotary_factor"  # ours is relative to the head's width, in metadata it is absolute
# What changes a network, unless it is 0: refused where its architecture does not read it.
_CHANGING = (
    *("attention.sliding_window", "attention.scale", "attention.temperature_scale", "attn_logit_softcapping"),
    *("final_logit_softcapping", "embedding_scale", "residual_scale", "logit_scale", "expert_count"),
    *("expert_shared_count", "expert_group_count", "expert_weights_scale"),
)
_SCALING = "rope.scaling."
_YARN_KEYS = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
_SCALING_KEYS = {"type", "factor", "attn_factor", "original_context_length", "finetuned", *_YARN_KEYS}


def layer_types(file: GGUFFile, arch: str) -> Config:
    """Return `layer_types`, where metadata lists which layers have a window."""
    key = f"{arch}.attention.sliding_window_pattern"
    pattern = file.metadata.get(key)
    if pattern is None:
        return {}
    if not isinstance(pattern, list) or not all(isinstance(has_window, bool) for has_window in pattern):
        raise WeightsError(f"{file.path}: metadata {key} is {shown(pattern)}, must be a list of booleans")
    return {"layer_types": [SLIDING if has_window else FULL for has_window in pattern]}


def biases(file: GGUFFile, config: Config) -> Config:
    """Return whether a file has biases of attention, its output included, and of the MLP: metadata do not say so."""
    return {
        "attention_bias": "blk.0.attn_output.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in file.tensors,
    }


def bias_of_queries(file: GGUFFile, config: Config) -> Config:
    """Return whether a file has biases of queries, keys and values: its metadata do not say so."""
    return {"attention_bias": "blk.0.attn_q.bias" in file.tensors}


def mask_token(file: GGUFFile, config: Config) -> Config:
    """Return the mask's token, which files keep among those of the tokenizer."""
    key = "tokenizer.ggml.mask_token_id"
    if key not in file.metadata:
        raise WeightsError(f"{file.path}: {key} is missing: this network cannot write without a mask")
    return bias_of_queries(file, config) | {"mask_token_id": file.metadata[key]}


def choose(file: GGUFFile) -> Architecture:
    """Return the architecture of a file; WeightsError if there is no code for it."""
    name = file.metadata.get("general.architecture")
    of_name = [architecture for architecture in architectures().values() if architecture.gguf == name]
    if not of_name:
        supported = ", ".join(sorted({architecture.gguf for architecture in architectures().values()}))
        raise WeightsError(f"{file.path}: general.architecture is {shown(name)}, supported are {supported}")
    # The one whose mark is there, and not 0, else the one that needs none.
    marked = [a for a in of_name if a.gguf_mark and file.metadata.get(f"{name}.{a.gguf_mark}", 0) != 0]
    return (marked or [a for a in of_name if a.gguf_mark is None])[0]


def raw_config(file: GGUFFile, architecture: Architecture) -> tuple[Config, dict[str, str]]:
    """Return the config in Hugging Face keys, not yet checked, and what the file calls these keys."""
    arch, keys = architecture.gguf, KEYS | dict(architecture.gguf_keys)
    names = {ours: f"metadata {arch}.{theirs}" for ours, theirs in keys.items()}
    given = {ours: file.metadata[key] for ours, theirs in keys.items() if (key := f"{arch}.{theirs}") in file.metadata}
    if missing := [names[ours] for ours in KEYS if ours not in given and ours not in _OPTIONAL]:
        raise WeightsError(f"{file.path}: {missing[0]} is missing: convert the model again")
    raw: Config = _derived(given) | given
    if "vocab_size" not in raw and "token_embd.weight" in file.tensors:
        raw["vocab_size"] = file.tensors["token_embd.weight"].shape[0]
    if raw.get("sliding_window") == 0:  # no window
        del raw["sliding_window"]
    raw |= {
        "model_type": architecture.model_type,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_scaling": _rope_scaling(file, arch, set(keys.values())),
    }
    _refuse_unsupported(file, arch, keys, raw)
    if _ROTARY_WIDTH in raw:
        raw[_ROTARY_WIDTH] = _rotary_factor(file, names[_ROTARY_WIDTH], raw)
    if architecture.gguf_config:
        raw |= architecture.gguf_config(file, raw)
    return raw, names | {"rope_scaling": f"metadata {arch}.{_SCALING}*"}


def _derived(given: Mapping[str, Any]) -> Config:
    """Return what a silent file means: as many key/value heads as heads, which share the width."""
    heads, hidden = given["num_attention_heads"], given["hidden_size"]
    divides = type(heads) is int and type(hidden) is int and heads > 0 and hidden % heads == 0
    return {"num_key_value_heads": heads} | ({"head_dim": hidden // heads} if divides else {})


def _refuse_unsupported(file: GGUFFile, arch: str, keys: Mapping[str, str], raw: Config) -> None:
    read = set(keys.values())
    for key in _CHANGING:
        if key not in read and (found := file.metadata.get(f"{arch}.{key}", 0)) != 0:
            raise WeightsError(f"{file.path}: metadata {arch}.{key} is {shown(found)}, not supported for {arch}")
    width = raw.get("head_dim")
    for key in {"rope.dimension_count", "attention.value_length"} - read:
        if (found := file.metadata.get(f"{arch}.{key}", width)) != width:
            raise WeightsError(
                f"{file.path}: metadata {arch}.{key} is {shown(found)}, must be the head's width, {width}"
            )


def _rotary_factor(file: GGUFFile, name: str, raw: Config) -> float:
    """Return which part of a head turns."""
    count, width = raw[_ROTARY_WIDTH], raw.get("head_dim")
    if type(count) is not int or type(width) is not int or not 0 < count <= width:
        raise WeightsError(f"{file.path}: {name} is {shown(count)}, must be at most the head's width, {shown(width)}")
    return count / width


def _rope_scaling(file: GGUFFile, arch: str, read: Collection[str]) -> Config | None:
    prefix = f"{arch}.{_SCALING}"
    own = {key: value for key, value in file.metadata.items() if key.removeprefix(f"{arch}.") not in read}
    given = {key.removeprefix(prefix): value for key, value in own.items() if key.startswith(prefix)}
    kind = given.get("type", "none")
    if extra := sorted(given.keys() - _SCALING_KEYS):
        raise WeightsError(f"{file.path}: metadata {prefix}{extra[0]} is not supported")
    if not isinstance(kind, str) or kind not in ("none", "linear", "yarn"):
        raise WeightsError(f"{file.path}: metadata {prefix}type is {shown(kind)}, supported are none, linear, yarn")
    if ROPE_FACTORS in file.tensors:
        if kind != "none":
            raise WeightsError(f"{file.path}: {prefix}type is {kind!r} beside {ROPE_FACTORS!r}: only one is supported")
        return {"rope_type": "factors", "factors": numbers(file, ROPE_FACTORS)}
    if kind == "none":
        return None
    scaling = {"rope_type": kind} | {key: given[key] for key in ("factor",) if key in given}
    return scaling if kind == "linear" else scaling | _yarn(given)


def _yarn(given: Mapping[str, Any]) -> Config:
    # `transformers` names the whole attention factor, GGUF what YaRN's own, 0.1 ln(factor) + 1, is multiplied by.
    names = _YARN_KEYS | {"original_context_length": "original_max_position_embeddings"}
    result = {ours: given[theirs] for theirs, ours in names.items() if theirs in given}
    extra, factor = given.get("attn_factor", 1.0), given.get("factor", 0.0)
    if extra != 1.0:
        are_numbers = isinstance(extra, int | float) and isinstance(factor, int | float) and factor >= 1.0
        result["attention_factor"] = extra * (0.1 * math.log(factor) + 1.0) if are_numbers else extra
    return result


def numbers(file: GGUFFile, name: str) -> list[float]:
    """Return the numbers of a small tensor that says something of the config."""
    if name not in file.tensors:
        raise WeightsError(f"{file.path}: tensor {name!r} is missing: convert the model again")
    tensor = file.tensors[name]
    if tensor.format != "F32" or len(tensor.shape) != 1 or tensor.shape[0] > _MOST_FACTORS:
        raise WeightsError(
            f"{file.path}: tensor {name!r} must be F32 and at most {_MOST_FACTORS} long, "
            f"is {tensor.format} {tensor.shape}"
        )
    factors: list[float] = tensor.data[0].view("<f4").tolist()
    return factors
