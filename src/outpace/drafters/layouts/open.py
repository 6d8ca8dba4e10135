"""Open a trained drafter, whoever wrote it: say which layout a file or a folder has, and read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from outpace.drafters.layouts import dflash, eagle3, llama_cpp, medusa
from outpace.errors import UsageError, WeightsError
from outpace.types import RawTensor
from outpace.weights import drafter
from outpace.weights.drafter import DrafterCheckpoint
from outpace.weights.files import present, read_object
from outpace.weights.gguf import read_gguf
from outpace.weights.pickles import read_pickle
from outpace.weights.safetensors import INDEX, SINGLE, read_folder, read_safetensors
from outpace.weights.values import shown

Opener = Callable[[Path, Mapping[str, Any], Mapping[str, RawTensor]], DrafterCheckpoint]

_SPECULATORS: dict[str, Opener] = {"eagle3": eagle3.open_nested, "dflash": dflash.open_nested}
_BY_KEY: dict[str, Opener] = {
    dflash.KEY: dflash.open_flat,
    "draft_vocab_size": eagle3.open_flat,
    medusa.KEY: medusa.open_medusa,
}
_SAFETENSORS, _PICKLES = (SINGLE, medusa.SAFETENSORS), ("pytorch_model.bin", medusa.PICKLE)


def open_trained(path: Path) -> DrafterCheckpoint:
    """Return the drafter in a file or a folder.

    Raises UsageError for what is no drafter, WeightsError for one that is malformed or that we have no network for.
    """
    if path.is_dir():
        return _open_folder(path) if present(path / "config.json") else open_trained(_only_gguf(path))
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder: give a drafter's GGUF file, or its folder")
    if present(path.parent / "config.json") and path.suffix != ".gguf":
        raise UsageError(f"{path}: is one file of a folder: give the folder, {path.parent}")
    file = read_gguf(path, indices=True)
    architecture = file.metadata.get("general.architecture")
    if architecture == drafter.ARCHITECTURE:
        return drafter.from_gguf(file)
    if architecture == llama_cpp.ARCHITECTURE:
        return llama_cpp.open_gguf(file)
    raise UsageError(
        f"{path}: is no drafter: general.architecture is {shown(architecture)}, must be "
        f"{drafter.ARCHITECTURE!r} or {llama_cpp.ARCHITECTURE!r}"
    )


def _only_gguf(folder: Path) -> Path:
    found = sorted(folder.glob("*.gguf"))
    if len(found) != 1:
        raise UsageError(f"{folder}: holds no config.json and {len(found)} GGUF files: name a drafter's file or folder")
    return found[0]


def _open_folder(folder: Path) -> DrafterCheckpoint:
    raw = read_object(folder / "config.json")
    return _opener(raw, folder)(folder, raw, _tensors(folder, _SAFETENSORS, _PICKLES))


def _opener(raw: Mapping[str, Any], folder: Path) -> Opener:
    """Return who reads a folder, by what only its layout's config.json has."""
    if "speculators_model_type" in raw:
        kind = raw["speculators_model_type"]
        if not isinstance(kind, str) or kind not in _SPECULATORS:
            raise WeightsError(
                f"{folder / 'config.json'}: speculators_model_type is {shown(kind)}, supported are "
                f"{', '.join(_SPECULATORS)}"
            )
        return _SPECULATORS[kind]
    for key, opener in _BY_KEY.items():
        if key in raw:
            return opener
    raise UsageError(
        f"{folder}: is no drafter that we know: its config.json has none of speculators_model_type, "
        f"{', '.join(_BY_KEY)}; a model of its own is no drafter (strategy draft_model takes those)"
    )


def _tensors(folder: Path, safetensors: tuple[str, ...], pickles: tuple[str, ...]) -> dict[str, RawTensor]:
    """Return a folder's tensors: from safetensors where there are any, else from what torch.save wrote."""
    if present(folder / INDEX):
        return read_folder(folder, indices=True)
    for name in safetensors:
        if present(folder / name):
            return read_safetensors(folder / name, indices=True)
    for name in pickles:
        if present(folder / name):
            return read_pickle(folder / name)
    raise WeightsError(f"{folder}: holds no weights: one of {', '.join((*safetensors, INDEX, *pickles))} must be in it")
