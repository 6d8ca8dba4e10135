"""Say in Hugging Face words what a GGUF file says: its config, its end tokens, its order of Q and K rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from outpace.errors import WeightsError
from outpace.types import RawTensor
from outpace.weights.gguf import GGUFFile, means_none
from outpace.weights.values import shown

ARCHITECTURES = ("llama", "qwen2", "qwen3")  # Mistral's are "llama" here
ROPE_FACTORS = "rope_freqs.weight"
_MOST_FACTORS = 1 << 11

_KEYS = {  # our key -> metadata key, after the architecture
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "sliding_window": "attention.sliding_window",
    "vocab_size": "vocab_size",
}
_OPTIONAL = {"num_key_value_heads", "head_dim", "rope_theta", "sliding_window", "vocab_size"}
_SCALING = "rope.scaling."
_YARN_KEYS = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
_SCALING_KEYS = {"type", "factor", "attn_factor", "original_context_length", "finetuned", *_YARN_KEYS}
_HEADS = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}


def raw_config(file: GGUFFile) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the config in Hugging Face keys, not yet checked, and what the file calls these keys."""
    arch = file.metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in ARCHITECTURES:
        raise WeightsError(
            f"{file.path}: general.architecture is {shown(arch)}, supported are {', '.join(ARCHITECTURES)} "
            "(Mistral: llama)"
        )
    names = {ours: f"metadata {arch}.{theirs}" for ours, theirs in _KEYS.items()}
    given = {ours: file.metadata[key] for ours, theirs in _KEYS.items() if (key := f"{arch}.{theirs}") in file.metadata}
    if missing := [names[ours] for ours in _KEYS if ours not in given and ours not in _OPTIONAL]:
        raise WeightsError(f"{file.path}: {missing[0]} is missing: convert the model again")
    raw: dict[str, Any] = _derived(given) | given
    if "vocab_size" not in raw and "token_embd.weight" in file.tensors:
        raw["vocab_size"] = file.tensors["token_embd.weight"].shape[0]
    if raw.get("sliding_window") == 0:  # no window
        del raw["sliding_window"]
    raw |= {
        "model_type": "mistral" if arch == "llama" and "sliding_window" in raw else arch,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_scaling": _rope_scaling(file, arch),
    }
    _refuse_unsupported(file, arch, raw)
    return raw, names | {"rope_scaling": f"metadata {arch}.{_SCALING}*"}


def _derived(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a silent file means: as many key/value heads as heads, which share the width."""
    heads, hidden = given["num_attention_heads"], given["hidden_size"]
    divides = type(heads) is int and type(hidden) is int and heads > 0 and hidden % heads == 0
    return {"num_key_value_heads": heads} | ({"head_dim": hidden // heads} if divides else {})


def eos_ids(metadata: Mapping[str, Any], vocab_size: int) -> list[Any]:
    """Return what the file names as ends: of text, of turn, of message; what means "none" is left out."""
    tokens = metadata.get("tokenizer.ggml.tokens", ())
    sizes = {vocab_size, len(tokens) if isinstance(tokens, list) else vocab_size}
    keys = (f"tokenizer.ggml.{kind}_token_id" for kind in ("eos", "eot", "eom"))
    stated = [metadata[key] for key in keys if key in metadata]
    return [value for value in stated if not any(means_none(value, size) for size in sizes)]


def _refuse_unsupported(file: GGUFFile, arch: str, raw: Mapping[str, Any]) -> None:
    if arch != "llama" and "sliding_window" in raw:
        raise WeightsError(f"{file.path}: metadata {arch}.{_KEYS['sliding_window']} is not supported for {arch}")
    if experts := file.metadata.get(f"{arch}.expert_count"):
        raise WeightsError(f"{file.path}: metadata {arch}.expert_count is {shown(experts)}: no mixtures of experts yet")
    width = raw.get("head_dim")
    for key in ("rope.dimension_count", "attention.value_length"):
        if (found := file.metadata.get(f"{arch}.{key}", width)) != width:
            raise WeightsError(
                f"{file.path}: metadata {arch}.{key} is {shown(found)}, must be the head's width, {width}"
            )


def _rope_scaling(file: GGUFFile, arch: str) -> dict[str, Any] | None:
    prefix = f"{arch}.{_SCALING}"
    given = {key.removeprefix(prefix): v for key, v in file.metadata.items() if key.startswith(prefix)}
    kind = given.get("type", "none")
    if extra := sorted(given.keys() - _SCALING_KEYS):
        raise WeightsError(f"{file.path}: metadata {prefix}{extra[0]} is not supported")
    if not isinstance(kind, str) or kind not in ("none", "linear", "yarn"):
        raise WeightsError(f"{file.path}: metadata {prefix}type is {shown(kind)}, supported are none, linear, yarn")
    if ROPE_FACTORS in file.tensors:
        if kind != "none":
            raise WeightsError(f"{file.path}: {prefix}type is {kind!r} beside {ROPE_FACTORS!r}: only one is supported")
        return {"rope_type": "factors", "factors": _rope_factors(file)}
    if kind == "none":
        return None
    scaling = {"rope_type": kind} | {key: given[key] for key in ("factor",) if key in given}
    return scaling if kind == "linear" else scaling | _yarn(given)


def _yarn(given: Mapping[str, Any]) -> dict[str, Any]:
    # `transformers` names the whole attention factor, GGUF what YaRN's own, 0.1 ln(factor) + 1, is multiplied by.
    names = _YARN_KEYS | {"original_context_length": "original_max_position_embeddings"}
    result = {ours: given[theirs] for theirs, ours in names.items() if theirs in given}
    extra, factor = given.get("attn_factor", 1.0), given.get("factor", 0.0)
    if extra != 1.0:
        numbers = isinstance(extra, int | float) and isinstance(factor, int | float) and factor >= 1.0
        result["attention_factor"] = extra * (0.1 * math.log(factor) + 1.0) if numbers else extra
    return result


def _rope_factors(file: GGUFFile) -> list[float]:
    tensor = file.tensors[ROPE_FACTORS]
    if tensor.format != "F32" or len(tensor.shape) != 1 or tensor.shape[0] > _MOST_FACTORS:
        raise WeightsError(
            f"{file.path}: tensor {ROPE_FACTORS!r} must be F32 and at most {_MOST_FACTORS} long, "
            f"is {tensor.format} {tensor.shape}"
        )
    factors: list[float] = tensor.data[0].view("<f4").tolist()
    return factors


class RotateHalf(Mapping[str, RawTensor]):
    """The tensors of a GGUF `llama`, with the rows of Q and K in Hugging Face order.

    There, row i of a head is paired with row i + K/2; in the file, rows 2i and 2i + 1 are neighbours. Rows are
    moved as stored bytes, when a tensor is asked for: nothing is converted, and nothing is kept twice.
    """

    def __init__(self, tensors: Mapping[str, RawTensor], config: Mapping[str, Any]) -> None:
        self._tensors = tensors
        self._heads = {f".self_attn.{name}.weight": config[heads] for name, heads in _HEADS.items()}

    def __getitem__(self, name: str) -> RawTensor:
        tensor = self._tensors[name]
        for suffix, heads in self._heads.items():
            if name.endswith(suffix):
                pairs = tensor.data.reshape(heads, -1, 2, tensor.data.shape[1])
                return replace(tensor, data=np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(tensor.data.shape))
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
