"""Which tensors a model has, their shapes, and what each kind of file calls them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from outpace.errors import WeightsError
from outpace.types import RawTensor

_VECTOR_FORMATS = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor that the config calls for."""

    name: str  # in a Hugging Face folder, and everywhere in Outpace
    gguf: str  # in a GGUF file
    shape: tuple[int, ...]


def entries(config: Mapping[str, Any]) -> Iterator[Entry]:
    """Yield every tensor of the model that a normalised config describes."""
    vocab, width = config["vocab_size"], config["hidden_size"]
    yield Entry("model.embed_tokens.weight", "token_embd.weight", (vocab, width))
    for i in range(config["num_hidden_layers"]):
        for name, gguf, shape in _layer(config):
            yield Entry(f"model.layers.{i}.{name}", f"blk.{i}.{gguf}", shape)
    yield Entry("model.norm.weight", "output_norm.weight", (width,))
    if not config["tie_word_embeddings"]:
        yield Entry("lm_head.weight", "output.weight", (vocab, width))


def _layer(config: Mapping[str, Any]) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    width, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    yield "input_layernorm.weight", "attn_norm.weight", (width,)
    yield "self_attn.q_proj.weight", "attn_q.weight", (q, width)
    yield "self_attn.k_proj.weight", "attn_k.weight", (kv, width)
    yield "self_attn.v_proj.weight", "attn_v.weight", (kv, width)
    yield "self_attn.o_proj.weight", "attn_output.weight", (width, q)
    if config["attention_bias"]:
        yield "self_attn.q_proj.bias", "attn_q.bias", (q,)
        yield "self_attn.k_proj.bias", "attn_k.bias", (kv,)
        yield "self_attn.v_proj.bias", "attn_v.bias", (kv,)
    if config["model_type"] == "qwen3":
        yield "self_attn.q_norm.weight", "attn_q_norm.weight", (head,)
        yield "self_attn.k_norm.weight", "attn_k_norm.weight", (head,)
    yield "post_attention_layernorm.weight", "ffn_norm.weight", (width,)
    yield "mlp.gate_proj.weight", "ffn_gate.weight", (inner, width)
    yield "mlp.up_proj.weight", "ffn_up.weight", (inner, width)
    yield "mlp.down_proj.weight", "ffn_down.weight", (width, inner)


def select(
    found: Mapping[str, RawTensor], config: Mapping[str, Any], source: Literal["gguf", "folder"], where: str
) -> dict[str, RawTensor]:
    """Return the tensors that the config calls for, under their Hugging Face names.

    Raises WeightsError for tensors that are missing, of another shape, or that would be ignored.
    """
    wanted = {(entry.gguf if source == "gguf" else entry.name): entry for entry in entries(config)}
    if missing := [name for name in wanted if name not in found]:
        raise WeightsError(f"{where}: {_some(missing)} missing: fetch or convert the model again")
    if extra := sorted(found.keys() - wanted.keys()):
        raise WeightsError(f"{where}: {_some(extra)} in the file, which a {config['model_type']} model does not have")
    for name, entry in wanted.items():
        tensor = found[name]
        if tensor.shape != entry.shape:
            raise WeightsError(f"{where}: tensor {name!r} has shape {tensor.shape}, the config says {entry.shape}")
        if len(entry.shape) == 1 and tensor.format not in _VECTOR_FORMATS:
            raise WeightsError(f"{where}: tensor {name!r} is {tensor.format}, must be {', '.join(_VECTOR_FORMATS)}")
    return {entry.name: replace(found[name], name=entry.name) for name, entry in wanted.items()}


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{'tensors' if len(names) > 1 else 'tensor'} {', '.join(map(repr, names[:3]))}{more}"
