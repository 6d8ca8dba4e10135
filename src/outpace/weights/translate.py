"""Say in Hugging Face words what a GGUF file says: its config, its end tokens, its order of Q and K rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from outpace.errors import WeightsError
from outpace.types import RawTensor
from outpace.weights.gguf import GGUFFile

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
_SCALING = "rope.scaling."
_YARN_KEYS = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
_SCALING_KEYS = {"type", "factor", "attn_factor", "original_context_length", "finetuned", *_YARN_KEYS}
_HEADS = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}


def raw_config(file: GGUFFile) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the config in Hugging Face keys, not yet checked, and what the file calls these keys."""
    arch = file.metadata.get("general.architecture")
    if arch not in ARCHITECTURES:
        raise WeightsError(
            f"{file.path}: general.architecture is {arch!r}, supported are {', '.join(ARCHITECTURES)} (Mistral: llama)"
        )
    names = {ours: f"metadata {arch}.{theirs}" for ours, theirs in _KEYS.items()}
    raw = {ours: file.metadata.get(f"{arch}.{theirs}") for ours, theirs in _KEYS.items()}
    if raw["vocab_size"] is None and "token_embd.weight" in file.tensors:
        raw["vocab_size"] = file.tensors["token_embd.weight"].shape[0]
    raw |= {
        "model_type": "mistral" if arch == "llama" and raw["sliding_window"] else arch,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_scaling": _rope_scaling(file, arch),
    }
    _refuse_unsupported(file, arch, raw)
    return raw, names | {"rope_scaling": f"metadata {arch}.{_SCALING}*"}


def eos_ids(metadata: Mapping[str, Any]) -> list[Any]:
    """Return what the file names as ends: of text, of turn, of message."""
    keys = (f"tokenizer.ggml.{kind}_token_id" for kind in ("eos", "eot", "eom"))
    return [metadata[key] for key in keys if key in metadata]


def _refuse_unsupported(file: GGUFFile, arch: str, raw: Mapping[str, Any]) -> None:
    if arch != "llama" and raw["sliding_window"]:
        raise WeightsError(f"{file.path}: metadata {arch}.{_KEYS['sliding_window']} is not supported for {arch}")
    if experts := file.metadata.get(f"{arch}.expert_count"):
        raise WeightsError(f"{file.path}: metadata {arch}.expert_count is {experts}: no mixtures of experts yet")
    heads, hidden = raw["num_attention_heads"], raw["hidden_size"]
    width = raw["head_dim"]
    if width is None and type(heads) is int and type(hidden) is int and heads > 0:
        width = hidden // heads
    for key in ("rope.dimension_count", "attention.value_length"):
        if (found := file.metadata.get(f"{arch}.{key}", width)) != width:
            raise WeightsError(f"{file.path}: metadata {arch}.{key} is {found!r}, must be the head's width, {width}")


def _rope_scaling(file: GGUFFile, arch: str) -> dict[str, Any] | None:
    prefix = f"{arch}.{_SCALING}"
    given = {key.removeprefix(prefix): v for key, v in file.metadata.items() if key.startswith(prefix)}
    kind = given.get("type", "none")
    if extra := sorted(given.keys() - _SCALING_KEYS):
        raise WeightsError(f"{file.path}: metadata {prefix}{extra[0]} is not supported")
    if kind not in ("none", "linear", "yarn"):
        raise WeightsError(f"{file.path}: metadata {prefix}type is {kind!r}, supported are none, linear, yarn")
    if ROPE_FACTORS in file.tensors:
        if kind != "none":
            raise WeightsError(f"{file.path}: {prefix}type is {kind!r} beside {ROPE_FACTORS!r}: only one is supported")
        return {"rope_type": "factors", "factors": _rope_factors(file)}
    if kind == "none":
        return None
    scaling = {"rope_type": kind, "factor": given.get("factor")}
    return scaling if kind == "linear" else scaling | _yarn(given)


def _yarn(given: Mapping[str, Any]) -> dict[str, Any]:
    # `transformers` names the whole attention factor, GGUF what YaRN's own, 0.1 ln(factor) + 1, is multiplied by.
    result = {"original_max_position_embeddings": given.get("original_context_length")}
    result |= {ours: given.get(theirs) for theirs, ours in _YARN_KEYS.items()}
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
