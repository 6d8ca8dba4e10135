"""EAGLE-3 as llama.cpp's converter writes it: a GGUF file of the architecture "eagle3".

Its `target_layers` (`extract_layers` in older files) are layers whose inputs are taken, counted from 0: outputs counted
from 1, as ours are. Its `d2t` holds tokens, not offsets. As in its Llamas, rows of Q and K that turn together are
neighbours. The file holds the target's tokenizer.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from outpace.drafters.layouts.decoder import Decoder
from outpace.drafters.layouts.indices import head_tokens
from outpace.errors import WeightsError
from outpace.types import RawTensor
from outpace.weights.drafter import DrafterCheckpoint
from outpace.weights.gguf import GGUFFile
from outpace.weights.trained import DrafterTarget, Entries
from outpace.weights.values import Values, shown

ARCHITECTURE = "eagle3"
_KEYS = {  # Hugging Face's -> the file's
    **{"hidden_size": "embedding_length", "intermediate_size": "feed_forward_length"},
    **{"num_hidden_layers": "block_count", "num_attention_heads": "attention.head_count"},
    **{"num_key_value_heads": "attention.head_count_kv", "head_dim": "attention.key_length"},
    **{"max_position_embeddings": "context_length", "rms_norm_eps": "attention.layer_norm_rms_epsilon"},
    **{"rope_theta": "rope.freq_base", "vocab_size": "vocab_size"},
}
_NAMES = {
    **{"fc.weight": "fc", "output_norm.weight": "head_norm", "output.weight": "head", "token_embd.weight": "embedding"},
    **{"enc.output_norm.weight": "tap_norm", "blk.0.attn_norm.weight": "token_norm"},
    **{"blk.0.attn_norm_2.weight": "feature_norm", "blk.0.ffn_norm.weight": "mlp_norm"},
    **{"blk.0.attn_q.weight": "wq", "blk.0.attn_k.weight": "wk", "blk.0.attn_v.weight": "wv"},
    **{"blk.0.attn_output.weight": "wo"},
    **{f"blk.0.ffn_{name}.weight": name for name in ("gate", "up", "down")},
}
_OPTIONAL = ("head", "embedding", "tap_norm")
_FACTORS = ("rope_freqs.weight", "blk.0.rope_freqs.weight")
_MAPS = ("d2t", "t2d")


def open_gguf(file: GGUFFile) -> DrafterCheckpoint:
    """Return the drafter in a file; raises WeightsError for what is no network that we have."""
    source = Values(
        {key.removeprefix(f"{ARCHITECTURE}."): value for key, value in file.metadata.items()},
        f"{file.path}: metadata {ARCHITECTURE}.*",
    )
    raw = {ours: source.raw[theirs] for ours, theirs in _KEYS.items() if theirs in source.raw}
    decoder = Decoder.read(raw | {"model_type": "llama", "rope_scaling": _scaling(file, source)}, source.where, _KEYS)
    if decoder.num_layers != 1:
        raise source.error("block_count", f"is {decoder.num_layers}: only drafters of one layer are supported")
    where = str(file.path)
    tensors = _renamed(file.tensors, where)
    for name, heads in (("wq", decoder.num_heads), ("wk", decoder.num_kv_heads)):
        tensors[name] = _rotate_half(tensors[name], heads * decoder.head_width, heads, where)
    rows = file.tensors["d2t"].shape[0] if "d2t" in file.tensors else decoder.vocab_size
    tokens = head_tokens(file.tensors, rows, decoder.vocab_size, where, offsets=False)
    entries = {
        **decoder.entries(),
        **{"taps": _taps(source), "tap_residual": False},
        "tap_norm": "joint" if source.flag("norm_before_fc", absent=False) else "none",
        "norm_before_residual": source.flag("norm_before_residual", absent=False),
        **{"num_fixed": len(tokens), "head_tokens": tokens},
        **{"embedding": "embedding" in tensors, "head": "head" in tensors},
    }
    width = source.count("target_hidden_size", 1 << 17, absent=decoder.width)
    target = DrafterTarget(None, None, decoder.vocab_size, width, None)
    name = "the model whose tokenizer it holds"
    return DrafterCheckpoint(
        file.path, "eagle", name, "", target, Entries(entries, where), tensors, "llama.cpp", file.metadata
    )


def _taps(source: Values) -> list[int]:
    key = "target_layers" if "target_layers" in source.raw else "extract_layers"
    layers = source.raw.get(key)
    if not isinstance(layers, list | array) or not all(type(layer) is int and 0 <= layer < 1 << 16 for layer in layers):
        raise source.error(key, f"must be a list of layers, is {shown(layers)}")
    return list(layers)


def _scaling(file: GGUFFile, source: Values) -> dict[str, Any] | None:
    kind = source.text("rope.scaling.type") or "none"
    found = [file.tensors[name] for name in _FACTORS if name in file.tensors]
    if kind not in ("none", "linear") or (kind == "linear" and found):
        raise source.error("rope.scaling.type", f"is {kind!r}, supported are none and linear, without factors")
    if kind == "linear":
        return {"rope_type": "linear", "factor": source.number("rope.scaling.factor", 1e9)}
    if not found:
        return None
    if found[0].format != "F32" or len(found[0].shape) != 1:
        raise WeightsError(f"{file.path}: tensor {found[0].name!r} must be F32 and have one dimension")
    return {"rope_type": "factors", "factors": found[0].data[0].view("<f4").tolist()}


def _renamed(found: Mapping[str, RawTensor], where: str) -> dict[str, RawTensor]:
    """Return the tensors by our names; WeightsError for one too many or too few."""
    wanted = {name: ours for name, ours in _NAMES.items() if name in found or ours not in _OPTIONAL}
    if missing := [name for name in wanted if name not in found]:
        raise WeightsError(f"{where}: tensor {missing[0]!r} is missing: fetch or convert the drafter again")
    if odd := [name for name in found if name not in (*_NAMES, *_FACTORS, *_MAPS)]:
        raise WeightsError(f"{where}: tensor {odd[0]!r} has no place in an EAGLE-3 drafter of one layer")
    return {ours: found[name] for name, ours in wanted.items()}


def _rotate_half(tensor: RawTensor, num_rows: int, num_heads: int, where: str) -> RawTensor:
    """Return a matrix with the rows of each head in our order: row i turns with row i + K / 2."""
    if tensor.shape[0] != num_rows or len(tensor.shape) != 2:
        raise WeightsError(f"{where}: tensor {tensor.name!r} must have {num_rows} rows, has shape {tensor.shape}")
    pairs = tensor.data.reshape(num_heads, -1, 2, tensor.data.shape[1])
    return replace(tensor, data=np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(tensor.data.shape))
