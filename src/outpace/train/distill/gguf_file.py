"""Write a student as a GGUF file, for llama.cpp and its relatives: their names, their order of rows, their metadata.

Where the teacher is a GGUF file, all that its metadata say is copied, sizes aside; where it is a folder, metadata are
written from its config, and the tokenizer's from tokenizer.json. What cannot be said so is refused, with the reason:
llama.cpp's own converter makes such a file from the student's folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models as tokenizer_models
from torch import Tensor

from outpace.errors import UsageError
from outpace.models.architecture import Architecture, architectures, normalise, sizes
from outpace.models.checkpoint import Checkpoint
from outpace.models.config import Config
from outpace.models.gguf import KEYS
from outpace.models.select import head_order
from outpace.tokenizer.folder import folder_parts
from outpace.tokenizer.gguf import CONTROL, NAMED, NORMAL, UNUSED, USER_DEFINED
from outpace.tokenizer.parts import Parts
from outpace.tokenizer.pre_tokenizer import PRE
from outpace.train.distill.folder import Arrays, Shape, stored_tensors
from outpace.train.export import write_gguf

_FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7}  # general.file_type
FORMATS = tuple(_FILE_TYPES)
_QUERIES_AND_KEYS = {"wq": "num_heads", "bq": "num_heads", "wk": "num_kv_heads", "bk": "num_kv_heads"}


def write_student(
    path: Path, teacher: Checkpoint, shape: Shape, config: Config, state: Mapping[str, Tensor], name: str, format: str
) -> None:
    """Write a student's file, whole or not at all; matrices in `format`, vectors in F32. Raises UsageError."""
    architecture = architectures()[config["model_type"]]
    own = (
        _from_file(teacher, architecture, shape)
        if teacher.gguf is not None
        else _from_folder(teacher, architecture, config)
    )
    entries = {"general.type": "model", "general.name": name, "general.file_type": _FILE_TYPES[format], **own}
    numbers = _tensors(architecture, config, state)
    write_gguf(path, architecture.gguf, entries, numbers, format)


def _tensors(architecture: Architecture, config: Config, state: Mapping[str, Tensor]) -> Arrays:
    """Return the numbers under GGUF's names, in its order of rows."""
    own = sizes(normalise(config, "the student"))
    order = head_order(own.head_width, own.rotary_width, architecture.gguf_pairs)
    by_name = {
        tensor.in_layer(i).name: np.arange(getattr(own, count))[:, None] * own.head_width + order
        for i in range(own.num_layers)
        for place, tensor in architecture.layer(own).items()
        if (count := _QUERIES_AND_KEYS.get(place))
    }
    return stored_tensors(config, state, "gguf", {name: rows.reshape(-1) for name, rows in by_name.items()})


def _from_file(teacher: Checkpoint, architecture: Architecture, shape: Shape) -> dict[str, Any]:
    """Return the entries of the teacher's file for fewer layers and neurons."""
    assert teacher.gguf is not None
    arch, count = architecture.gguf, teacher.config["num_hidden_layers"]
    found: dict[str, Any] = {}
    for key, value in teacher.gguf.items():
        plain = value.tolist() if hasattr(value, "tolist") else value
        if key.startswith(f"{arch}."):
            is_by_layer = isinstance(plain, list) and len(plain) == count
            found[key] = [plain[i] for i in shape.layers] if is_by_layer else plain
        elif key.startswith("tokenizer."):
            found[key] = plain
    sizes = {"block_count": len(shape.layers), "feed_forward_length": shape.feed_forward_width}
    return found | {f"{arch}.{name}": value for name, value in sizes.items()}


def _from_folder(teacher: Checkpoint, architecture: Architecture, config: Config) -> dict[str, Any]:
    """Return the entries of a student whose teacher is a folder."""
    checked = normalise(config, "the student")
    if checked["rope_scaling"] is not None:
        kind = checked["rope_scaling"]["rope_type"]
        raise UsageError(f"its rope is scaled ({kind}): only plain ropes are written into GGUF files")
    if checked["sliding_window"] is not None and "sliding_window" not in architecture.gguf_keys:
        raise UsageError(f"a {architecture.gguf} file has no words for its windows")
    keys = KEYS | dict(architecture.gguf_keys)
    found = {f"{architecture.gguf}.{keys[name]}": checked[name] for name in keys if checked.get(name) is not None}
    found[f"{architecture.gguf}.attention.value_length"] = checked["head_dim"]
    found[f"{architecture.gguf}.rope.dimension_count"] = checked["head_dim"]
    return found | _tokenizer(teacher, checked["vocab_size"])


def _tokenizer(teacher: Checkpoint, vocab_size: int) -> dict[str, Any]:
    """Return the entries of a folder's byte-level BPE tokenizer."""
    parts = folder_parts(teacher.path)
    stored = json.loads(parts.backend.to_str())
    pre = _pre(stored)
    added = {i: token.special for i, token in parts.backend.get_added_tokens_decoder().items()}
    tokens, types = [], []
    for i in range(max(vocab_size, parts.size)):
        token = parts.backend.id_to_token(i)
        tokens.append(f"[PAD{i}]" if token is None else token)
        is_control = added.get(i)
        types.append(
            UNUSED if token is None else NORMAL if is_control is None else CONTROL if is_control else USER_DEFINED
        )
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in stored["model"]["merges"]]
    return {
        **{"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": tokens},
        **{"tokenizer.ggml.token_type": types, "tokenizer.ggml.merges": merges},
        **{"tokenizer.ggml.add_bos_token": bool(parts.prefix), "tokenizer.ggml.add_eos_token": bool(parts.suffix)},
        **_ids(parts, teacher),
        **_templates(parts),
    }


def _pre(stored: Mapping[str, Any]) -> str:
    """Return GGUF's name of how a tokenizer cuts text."""
    if stored["model"].get("type") != "BPE" or stored["model"].get("byte_fallback"):
        raise UsageError("its tokenizer is no byte-level BPE")
    for name, pre in PRE.items():
        backend = tokenizers.Tokenizer(tokenizer_models.BPE())
        backend.pre_tokenizer = pre.split()
        known = json.loads(backend.to_str())["pre_tokenizer"]
        same_words = bool(stored["model"].get("ignore_merges")) == pre.whole_words
        same_text = (stored["normalizer"] is not None) == pre.nfc
        if known == stored["pre_tokenizer"] and same_words and same_text:
            return name
    raise UsageError("no name in GGUF files is known for how its tokenizer cuts text")


def _ids(parts: Parts, teacher: Checkpoint) -> dict[str, int]:
    found = {}
    for name, key in NAMED.items():
        token = parts.named.get(name)
        if token is not None and (i := parts.backend.token_to_id(token)) is not None:
            found[f"tokenizer.ggml.{key}"] = int(i)
    ends = sorted(teacher.eos_ids)
    if ends and "tokenizer.ggml.eos_token_id" not in found:
        found["tokenizer.ggml.eos_token_id"] = ends[0]
    others = [i for i in ends if i != found.get("tokenizer.ggml.eos_token_id")]
    for key, i in zip(("eot_token_id", "eom_token_id"), others, strict=False):
        found[f"tokenizer.ggml.{key}"] = i
    return found


def _templates(parts: Parts) -> dict[str, str]:
    start = "tokenizer.chat_template"
    return {start if name == "default" else f"{start}.{name}": text for name, text in parts.templates.items()}
