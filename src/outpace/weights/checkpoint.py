"""Open a model, whatever holds it: one config, one set of names, tensors as they are stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outpace.errors import UsageError, WeightsError
from outpace.types import RawTensor
from outpace.weights import translate
from outpace.weights.config import normalise
from outpace.weights.files import read_object
from outpace.weights.gguf import MAGIC, part_names, read_gguf
from outpace.weights.layout import select
from outpace.weights.safetensors import read_folder

_SAMPLES, _SAMPLE_BYTES = 4, 256


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
        return _open_folder(path) if (path / "config.json").is_file() else _open_gguf(_only_gguf(path))
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
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from None


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
        eos=translate.eos_ids(file.metadata),
        stored=tensors,
    )


def _open_folder(folder: Path) -> Checkpoint:
    raw = read_object(folder / "config.json")
    config = normalise(raw, str(folder / "config.json"))
    unused = {"lm_head.weight"} if config["tie_word_embeddings"] else set()  # some folders hold the embedding twice
    found = {
        name: tensor
        for name, tensor in read_folder(folder).items()
        if name not in unused and not name.endswith(".rotary_emb.inv_freq")  # old folders hold what theta says
    }
    tensors = select(found, config, "folder", str(folder))
    generation = folder / "generation_config.json"
    eos = [source.get("eos_token_id") for source in (raw, read_object(generation) if generation.is_file() else {})]
    return _checkpoint(folder, config, tensors, gguf=None, eos=eos, stored=tensors)


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
                raise WeightsError(f"{path}: an end token must be an id in [0, {vocab_size}), is {token!r}")
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
