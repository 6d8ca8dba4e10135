"""Open a model, whatever holds it: one config, one set of names, tensors as they are stored."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from outpace.errors import UsageError, WeightsError
from outpace.types import RawTensor
from outpace.weights import translate
from outpace.weights.config import normalise
from outpace.weights.files import open_regular, present, read_object
from outpace.weights.gguf import MAGIC, part_names, read_gguf
from outpace.weights.layout import select
from outpace.weights.safetensors import read_folder
from outpace.weights.values import shown

_SAMPLES, _SAMPLE_BYTES = 4, 256
_CHUNK = 1 << 20  # bytes that are compared at once
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_USUAL_EOS = {"llama": 2, "mistral": 2}  # model type -> the end token of a folder that is silent about it


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model as it lies on disk: everything that `models` and `tokenizer` need, and nothing computed."""

    path: Path  # the GGUF file (its first part) or the Hugging Face folder
    config: dict[str, Any]  # the keys that `weights/config.py` lists
    tensors: Mapping[str, RawTensor]  # under Hugging Face names: exactly those that the config calls for
    gguf: Mapping[str, Any] | None  # a GGUF file's metadata (its tokenizer is in there); None for a folder
    eos_ids: frozenset[int]  # every token that config, generation config or GGUF (eos, eot, eom) names as an end
    fingerprint: bytes  # see `_fingerprint`
    num_bytes: int  # of all tensors, as stored


def open_checkpoint(path: Path) -> Checkpoint:
    """Return the model in a GGUF file, in a Hugging Face folder, or in a folder with one GGUF file.

    Reads headers only; tensors are mapped, and read when they are used. Raises UsageError for a path that is
    not a model, WeightsError for a model that is malformed or not supported.
    """
    if path.is_dir():
        return _open_folder(path) if present(path / "config.json") else _open_gguf(_only_gguf(path))
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder: give a GGUF file or a Hugging Face folder")
    if path.suffix == ".gguf" or _starts_like_gguf(path):
        return _open_gguf(path)
    if (path.parent / "config.json").is_file():
        raise UsageError(f"{path}: is one file of a Hugging Face folder: give the folder, {path.parent}")
    raise UsageError(f"{path}: is not a GGUF file: give one, or a Hugging Face folder")


def _only_gguf(folder: Path) -> Path:
    names = sorted(path.name for path in folder.glob("*.gguf"))
    if not names:
        raise UsageError(f"{folder}: holds neither a config.json nor a GGUF file: give a model's folder")
    if len(names) > 1 and part_names(names[0]) != names:
        raise UsageError(f"{folder}: holds {len(names)} GGUF files: name one of {', '.join(names)}")
    return folder / names[0]


def _starts_like_gguf(path: Path) -> bool:
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except (OSError, WeightsError) as error:
        raise UsageError(f"{error}: give a GGUF file, or a Hugging Face folder") from None


def _open_gguf(path: Path) -> Checkpoint:
    file = read_gguf(path)
    raw, names = translate.raw_config(file)
    config = normalise(raw, str(path), names)
    found = {name: tensor for name, tensor in file.tensors.items() if name != translate.ROPE_FACTORS}
    tensors = select(found, config, "gguf", str(path))
    permuted = file.metadata["general.architecture"] == "llama"
    return _checkpoint(
        file.path,
        config,
        translate.RotateHalf(tensors, config) if permuted else tensors,
        gguf=file.metadata,
        eos=translate.eos_ids(file.metadata, config["vocab_size"]),
        stored=tensors,
    )


def _open_folder(folder: Path) -> Checkpoint:
    raw = read_object(folder / "config.json")
    config = normalise(raw, str(folder / "config.json"))
    found = {
        name: tensor
        for name, tensor in read_folder(folder).items()
        if not name.endswith(".rotary_emb.inv_freq")  # old folders hold what theta says
    }
    if config["tie_word_embeddings"] and _HEAD in found:
        config["tie_word_embeddings"] = _is_tied(found, folder)
        if config["tie_word_embeddings"]:
            del found[_HEAD]
    tensors = select(found, config, "folder", str(folder))
    return _checkpoint(folder, config, tensors, gguf=None, eos=_stated_ends(folder, raw, config), stored=tensors)


def _is_tied(found: Mapping[str, RawTensor], folder: Path) -> bool:
    """Whether the output matrix that the file holds repeats the embedding; warns if it is another one.

    The file counts then, and not the config (as in transformers 5 and in vLLM, PR 51665): a matrix that somebody
    trained is there to be used, and without it the text would be another one.
    """
    head, embedding = found[_HEAD], found.get(_EMBEDDING)
    if embedding is not None and head.format == embedding.format and head.shape == embedding.shape:
        a, b = head.data.reshape(-1), embedding.data.reshape(-1)
        if all(np.array_equal(a[i : i + _CHUNK], b[i : i + _CHUNK]) for i in range(0, len(a), _CHUNK)):
            return True
    warnings.warn(
        f"{folder}: config.json says that the embedding is the output matrix too (tie_word_embeddings), but "
        f"{_HEAD} differs from it: {_HEAD} is used",
        stacklevel=2,
    )
    return False


def _stated_ends(folder: Path, raw: Mapping[str, Any], config: Mapping[str, Any]) -> list[Any]:
    """Return what config.json and generation_config.json name as end tokens.

    Where there is no generation config and the config has no such key, null included, the model type's usual one.
    """
    generation = folder / "generation_config.json"
    has_own = present(generation)
    usual = None if has_own else _USUAL_EOS.get(config["model_type"])
    ends = [raw.get("eos_token_id", usual if usual is None or usual < config["vocab_size"] else None)]
    return [*ends, read_object(generation).get("eos_token_id")] if has_own else ends


def _checkpoint(
    path: Path,
    config: dict[str, Any],
    tensors: Mapping[str, RawTensor],
    *,
    gguf: Mapping[str, Any] | None,
    eos: Iterable[Any],
    stored: Mapping[str, RawTensor],
) -> Checkpoint:
    return Checkpoint(
        path,
        config,
        tensors,
        gguf,
        _eos_ids(eos, config["vocab_size"], path),
        _fingerprint(config, stored),
        sum(tensor.data.nbytes for tensor in stored.values()),
    )


def _eos_ids(stated: Iterable[Any], vocab_size: int, path: Path) -> frozenset[int]:
    """Return the union of what is stated: each an id, a list of ids, or None."""
    ids: set[int] = set()
    for value in stated:
        for token in value if isinstance(value, list) else [] if value is None else [value]:
            if type(token) is not int or not 0 <= token < vocab_size:
                raise WeightsError(f"{path}: an end token must be an id in [0, {vocab_size}), is {shown(token)}")
            ids.add(token)
    return frozenset(ids)


def _fingerprint(config: Mapping[str, Any], tensors: Mapping[str, RawTensor]) -> bytes:
    """Return 32 bytes that tell models apart: SHA-256 over config, names, formats, and samples of every tensor.

    Reading all bytes would take seconds for a large model, and a file's time says nothing of its content. So
    four stretches of 256 bytes, evenly spaced from first to last byte, stand for each tensor: training, merging
    or quantising again changes all of them. Not a protection against somebody who edits between the samples.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        data = tensor.data.reshape(-1)
        digest.update(f"{name} {tensor.format} {tensor.shape}".encode())
        last = max(len(data) - _SAMPLE_BYTES, 0)
        for i in range(_SAMPLES):
            start = last * i // (_SAMPLES - 1)
            digest.update(data[start : start + _SAMPLE_BYTES].tobytes())
    return digest.digest()
