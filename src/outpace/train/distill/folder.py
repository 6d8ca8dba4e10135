"""Write a student as an ordinary Hugging Face folder: its config, its tensors, its teacher's tokenizer.

Where the teacher is a folder, config.json is the teacher's with fewer layers and neurons, and the tokenizer's files are
copied; where it is a GGUF file, both are written from its metadata.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from outpace.drafters.layouts.export import write_safetensors
from outpace.errors import UsageError
from outpace.measure.output_file import save
from outpace.models.architecture import architectures, normalise
from outpace.models.checkpoint import Checkpoint
from outpace.models.config import Config
from outpace.models.select import tensors
from outpace.models.tensors import Rows as RowsOf
from outpace.models.tensors import Source
from outpace.tokenizer.gguf import gguf_parts

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "tokenizer.model", "chat_template.json", "chat_template.jinja", "generation_config.json"),
)
_MORE_TEMPLATES = "additional_chat_templates"

Arrays = dict[str, NDArray[Any]]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Shape:
    """What of its teacher a student has: these layers, so many neurons of each feed-forward."""

    layers: tuple[int, ...]
    feed_forward_width: int


def student_config(teacher: Checkpoint, shape: Shape) -> Config:
    """Return the student's config.json. Raises UsageError for a teacher whose rope no config.json can state."""
    raw = _raw_config(teacher)
    count = raw["num_hidden_layers"]
    raw |= {"num_hidden_layers": len(shape.layers), "intermediate_size": shape.feed_forward_width}
    for name, value in raw.items():
        if name == "layer_types" and isinstance(value, list) and len(value) == count:
            raw[name] = [value[i] for i in shape.layers]
    if "layer_types" not in raw and raw.get("use_sliding_window") and "max_window_layers" in raw:
        raw["max_window_layers"] = sum(i < raw["max_window_layers"] for i in shape.layers)
    named = raw.get("architectures") or [f"{raw['model_type'].capitalize()}ForCausalLM"]  # transformers' class
    return raw | {"torch_dtype": "float16", "architectures": named}


def _raw_config(teacher: Checkpoint) -> Config:
    if teacher.gguf is None:
        found: Config = json.loads((teacher.path / "config.json").read_text(encoding="utf-8"))
        return found
    config = dict(teacher.config)
    if (config["rope_scaling"] or {}).get("rope_type") == "factors":
        raise UsageError(
            f"{teacher.path}: its rope is stored as factors (rope_freqs), which no config.json can state: give the "
            "model's Hugging Face folder as teacher"
        )
    if config["sliding_window"] is not None and config["model_type"].startswith("qwen"):
        config["use_sliding_window"] = True
    ends = sorted(teacher.eos_ids)
    named = {
        "bos_token_id": teacher.gguf.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": teacher.gguf.get("tokenizer.ggml.padding_token_id"),
    }
    return config | {"hidden_act": "silu"} | named


def stored_tensors(
    config: Config, state: Mapping[str, Tensor], source: Source = "folder", order: Mapping[str, Rows] | None = None
) -> Arrays:
    """Return a network's numbers in float32 as a file of this kind stores them, fused where it fuses them.

    order: for tensors whose rows lie elsewhere in the file, where each of them does.
    """
    found: Arrays = {}
    for tensor in tensors(normalise(config, "the student")):
        own = state[tensor.name].detach().float().cpu().numpy()
        if order and tensor.name in order:
            moved = np.empty_like(own)
            moved[order[tensor.name]] = own
            own = moved
        whole = tensor.whole(source)
        if whole is None:
            found[tensor.stored_name(source)] = own
            continue
        assert isinstance(whole.cut, RowsOf)  # experts are cut otherwise, and no student has any
        into = found.setdefault(whole.name, np.empty(whole.shape, np.float32))
        into[whole.cut.first : whole.cut.first + whole.cut.count] = own
    return found


def write_folder(folder: Path, teacher: Checkpoint, config: Config, state: Mapping[str, Tensor]) -> None:
    """Write a student of this config and these numbers (float16) into a folder, its config last."""
    if architectures()[config["model_type"]].pairs:
        raise UsageError(f"a {config['model_type']} student cannot be written as a folder yet")
    folder.mkdir(parents=True, exist_ok=True)
    halves = {name: x.astype(np.float16) for name, x in stored_tensors(config, state).items()}
    write_safetensors(folder / "model.safetensors", halves)
    if teacher.gguf is None:
        _copy_tokenizer(teacher.path, folder)
    else:
        _write_tokenizer(teacher.gguf, folder)
    save(folder / "config.json", json.dumps(config, ensure_ascii=False, indent=2) + "\n")


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if (source / _MORE_TEMPLATES).is_dir():
        shutil.copytree(source / _MORE_TEMPLATES, folder / _MORE_TEMPLATES, dirs_exist_ok=True)


def _write_tokenizer(metadata: Mapping[str, Any], folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json of what a GGUF file says."""
    parts = gguf_parts(metadata)
    backend = tokenizers.Tokenizer.from_str(parts.backend.to_str())
    if parts.prefix or parts.suffix:
        backend.post_processor = _surrounding(backend, parts.prefix, parts.suffix)
    save(folder / "tokenizer.json", backend.to_str())
    templates = parts.templates
    stated: Any = templates.get("default")
    if set(templates) - {"default"}:
        stated = [{"name": name, "template": text} for name, text in templates.items()]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **dict(parts.named),
        **({} if stated is None else {"chat_template": stated}),
    }
    save(folder / "tokenizer_config.json", json.dumps(config, ensure_ascii=False, indent=2) + "\n")


def _surrounding(backend: tokenizers.Tokenizer, prefix: Sequence[int], suffix: Sequence[int]) -> Any:
    around = {backend.id_to_token(i): i for i in (*prefix, *suffix)}
    single = [
        *(f"{backend.id_to_token(i)}:0" for i in prefix),
        "$A:0",
        *(f"{backend.id_to_token(i)}:0" for i in suffix),
    ]
    return TemplateProcessing(single=single, special_tokens=list(around.items()))
