"""Open a model, whatever holds it: one config, one set of names, tensors as they are stored."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from outpace.errors import WeightsError
from outpace.models.architecture import architecture_of, folder_config, normalise
from outpace.models.config import Config
from outpace.models.gguf import ROPE_FACTORS, choose, raw_config
from outpace.models.multimodal import is_tied, text_config, text_name, text_tensors
from outpace.models.select import Selected, Stored, select
from outpace.models.select import tensors as all_tensors
from outpace.types import MaskFilling, RawTensor
from outpace.types.mapped import release
from outpace.weights.compressed import QUANTIZATION, convert, is_converted
from outpace.weights.gguf import GGUFFile, means_none
from outpace.weights.model_file import FolderFiles, read_model
from outpace.weights.values import shown

_SAMPLES, _SAMPLE_BYTES = 4, 256
_CHUNK = 1 << 20  # bytes that are compared at once
TUNED_BY = "outpace_tuned_by"  # in config.json, and behind "general." in a GGUF file
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model as it lies on disk: everything that a network and a tokenizer are built from, and nothing computed."""

    path: Path  # the GGUF file (its first part) or the Hugging Face folder
    config: Config  # the keys that `outpace.models.keys` lists, and its architecture's own
    tensors: Selected  # under Hugging Face names: exactly those that the config calls for
    gguf: Mapping[str, Any] | None  # a GGUF file's metadata (its tokenizer is in there); None for a folder
    eos_ids: frozenset[int]  # every token that config, generation config or GGUF (eos, eot, eom) names as an end
    fingerprint: bytes  # see `_fingerprint`
    num_bytes: int  # of all tensors, as stored
    filling: MaskFilling | None = None  # how it fills masks, where it was trained to
    tuned_by: str | None = None  # fingerprint, in hex, of an adapter that was merged into it (`train medusa --merge`)
    is_part: bool = False  # the text network of a multimodal folder, whose tensors of images are not read


def open_checkpoint(path: Path) -> Checkpoint:
    """Return the model in a GGUF file, in a Hugging Face folder, or in a folder with one GGUF file.

    Reads headers only; tensors are mapped, and read when they are used. Raises UsageError for a path that is
    not a model, WeightsError for a model that is malformed or not supported.
    """
    files = read_model(path)
    return _from_gguf(files) if isinstance(files, GGUFFile) else _from_folder(files)


def _from_gguf(file: GGUFFile) -> Checkpoint:
    where = str(file.path)
    architecture = choose(file)
    raw, names = raw_config(file, architecture)
    config = normalise(raw, where, names)
    read = (ROPE_FACTORS, *architecture.gguf_tensors)
    found = {name: tensor for name, tensor in file.tensors.items() if name not in read}
    tensors = select(found, config, "gguf", where)
    ends = _gguf_ends(file.metadata, config["vocab_size"])
    checkpoint = _checkpoint(file.path, config, tensors, file.metadata, ends)
    return replace(checkpoint, tuned_by=_tuned_by(file.metadata.get(f"general.{TUNED_BY}")))


def _from_folder(files: FolderFiles) -> Checkpoint:
    where = str(files.path / "config.json")
    text = text_config(files.config, where)
    given = files.config if text is None else text
    is_other = is_converted(given)
    config = folder_config({k: v for k, v in given.items() if k != QUANTIZATION} if is_other else given, where)
    whole = files.tensors(indices=is_other or QUANTIZATION in config)
    if text is not None:
        whole = text_tensors(whole, str(files.path))
    found = {
        name if text is None else text_name(name): tensor
        for name, tensor in _ours(convert(whole, given, where) if is_other else whole, config).items()
        if not name.endswith(".rotary_emb.inv_freq")  # old folders hold what theta says
    }
    if text is not None:
        config["tie_word_embeddings"] = is_tied(files.config, config, _HEAD in found)
    if config["tie_word_embeddings"] and _HEAD in found:
        config["tie_word_embeddings"] = _is_tied(found, files.path)
        if config["tie_word_embeddings"]:
            tied = found.pop(_HEAD)
            if isinstance(tied, RawTensor):
                release(tied.data)
    tensors = select(found, config, "folder", str(files.path))
    checkpoint = _checkpoint(files.path, config, tensors, None, _folder_ends(given, files.generation, config))
    checkpoint = replace(checkpoint, is_part=text is not None, tuned_by=_tuned_by(files.config.get(TUNED_BY)))
    stated = _filling(files.config.get("outpace_diffusion"), config["vocab_size"], files.path)
    return checkpoint if stated is None else replace(checkpoint, filling=stated)


def _ours(found: Mapping[str, Stored], config: Config) -> Mapping[str, Stored]:
    """Return a folder's tensors by our names, where its architecture has names of its own; others keep theirs."""
    architecture = architecture_of(config)
    if not architecture.folder_names:
        return found
    names = {architecture.folder_name(tensor.name): tensor.name for tensor in all_tensors(config)}
    return {names.get(name, name): tensor for name, tensor in found.items()}


def _tuned_by(stated: Any) -> str | None:
    """Return what a model says of an adapter that was merged into it."""
    return stated if isinstance(stated, str) else None


def _filling(stated: Any, vocab_size: int, path: Path) -> MaskFilling | None:
    """Return what config.json says of masks, as `outpace train diffusion` writes it into a folder; None: nothing."""
    if stated is None:
        return None
    bounds = {"mask_token_id": (0, vocab_size - 1), "block": (1, 4096), "shift": (0, 1)}
    if not isinstance(stated, dict) or stated.keys() != bounds.keys():
        raise WeightsError(f"{path}: outpace_diffusion must have the keys {', '.join(bounds)}, is {shown(stated)}")
    for name, (minimum, maximum) in bounds.items():
        if type(stated[name]) is not int or not minimum <= stated[name] <= maximum:
            raise WeightsError(
                f"{path}: outpace_diffusion: {name} must be in [{minimum}, {maximum}], is {shown(stated[name])}"
            )
    return MaskFilling(stated["mask_token_id"], stated["block"], stated["shift"])


def _is_tied(found: Mapping[str, Stored], folder: Path) -> bool:
    """Whether the output matrix that the file holds repeats the embedding; warns if it is another one.

    The file counts then, and not the config (as in transformers 5 and in vLLM, PR 51665): a matrix that somebody
    trained is there to be used, and without it the text would be another one.
    """
    head, embedding = found[_HEAD], found.get(_EMBEDDING)
    if (
        isinstance(head, RawTensor)
        and isinstance(embedding, RawTensor)
        and (head.format, head.shape) == (embedding.format, embedding.shape)
    ):
        a, b = head.data.reshape(-1), embedding.data.reshape(-1)
        if all(np.array_equal(a[i : i + _CHUNK], b[i : i + _CHUNK]) for i in range(0, len(a), _CHUNK)):
            return True
    warnings.warn(
        f"{folder}: config.json says that the embedding is the output matrix too (tie_word_embeddings), but "
        f"{_HEAD} differs from it: {_HEAD} is used",
        stacklevel=2,
    )
    return False


def _checkpoint(
    path: Path, config: Config, tensors: Selected, gguf: Mapping[str, Any] | None, ends: Iterable[Any]
) -> Checkpoint:
    filling = architecture_of(config).filling
    return Checkpoint(
        path,
        config,
        tensors,
        gguf,
        _eos_ids(ends, config["vocab_size"], path),
        _fingerprint(config, _in_files(tensors)),
        sum(tensor.data.nbytes for tensor in _in_files(tensors).values()),
        filling(config) if filling is not None else None,
    )


def _in_files(tensors: Selected) -> dict[str, RawTensor]:
    """Return the tensors as files have them: of a converted one, its parts there."""
    found: dict[str, RawTensor] = {}
    for name, stored in tensors.stored.items():
        if isinstance(stored, RawTensor):
            found[name] = stored
        else:
            found |= {part.name: part for part in stored.sources}
    return found


def _gguf_ends(metadata: Mapping[str, Any], vocab_size: int) -> list[Any]:
    """Return what the file names as ends: of text, of turn, of message; what means "none" is left out."""
    tokens = metadata.get("tokenizer.ggml.tokens", ())
    sizes = {vocab_size, len(tokens) if isinstance(tokens, list) else vocab_size}
    keys = (f"tokenizer.ggml.{kind}_token_id" for kind in ("eos", "eot", "eom"))
    stated = [metadata[key] for key in keys if key in metadata]
    return [value for value in stated if not any(means_none(value, size) for size in sizes)]


def _folder_ends(given: Mapping[str, Any], generation: Mapping[str, Any] | None, config: Config) -> list[Any]:
    """Return what config.json and generation_config.json name as end tokens.

    Where there is no generation config and the config has no such key, null included, the architecture's usual one.
    """
    if generation is not None:
        return [given.get("eos_token_id"), generation.get("eos_token_id")]
    usual = architecture_of(config).usual_eos
    return [given.get("eos_token_id", usual if usual is None or usual < config["vocab_size"] else None)]


def _eos_ids(stated: Iterable[Any], vocab_size: int, path: Path) -> frozenset[int]:
    """Return the union of what is stated: each an id, a list of ids, or None."""
    ids: set[int] = set()
    for value in stated:
        for token in value if isinstance(value, list) else [] if value is None else [value]:
            if type(token) is not int or not 0 <= token < vocab_size:
                raise WeightsError(f"{path}: an end token must be an id in [0, {vocab_size}), is {shown(token)}")
            ids.add(token)
    return frozenset(ids)


def _fingerprint(config: Config, tensors: Mapping[str, RawTensor]) -> bytes:
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
