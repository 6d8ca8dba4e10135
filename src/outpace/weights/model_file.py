"""Find and read the files of a model, whatever holds them: their keys and tensors as they are, nothing understood."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outpace.errors import UsageError, WeightsError
from outpace.types import RawTensor
from outpace.weights.files import open_regular, present, read_object
from outpace.weights.gguf import MAGIC, GGUFFile, part_names, read_gguf
from outpace.weights.safetensors import read_folder

_CONFIG, _GENERATION, _QUANTIZATION = "config.json", "generation_config.json", "quantization_config"
_OLD_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}  # config -> method, of 2023


@dataclass(frozen=True, slots=True)
class FolderFiles:
    """What a Hugging Face folder holds."""

    path: Path
    config: Mapping[str, Any]  # of config.json, with the quantisation that old folders describe in a file of its own
    generation: Mapping[str, Any] | None  # of generation_config.json; None if there is none

    def tensors(self, indices: bool = False) -> dict[str, RawTensor]:
        """Return the tensors, under their names there; indices: integers too (see `read_safetensors`)."""
        return read_folder(self.path, indices)


def read_model(path: Path) -> GGUFFile | FolderFiles:
    """Return what a GGUF file, a Hugging Face folder, or a folder with one GGUF file holds.

    Reads headers only; tensors are mapped, and read when they are used. Raises UsageError for a path that is
    not a model, WeightsError for a malformed file.
    """
    if path.is_dir():
        return _read_folder(path) if present(path / _CONFIG) else read_gguf(_only_gguf(path))
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder: give a GGUF file or a Hugging Face folder")
    if path.suffix == ".gguf" or _starts_like_gguf(path):
        return read_gguf(path)
    if (path.parent / _CONFIG).is_file():
        raise UsageError(f"{path}: is one file of a Hugging Face folder: give the folder, {path.parent}")
    raise UsageError(f"{path}: is not a GGUF file: give one, or a Hugging Face folder")


def _read_folder(folder: Path) -> FolderFiles:
    config, generation = read_object(folder / _CONFIG), folder / _GENERATION
    if _QUANTIZATION not in config:
        for name, method in _OLD_FILES.items():
            if present(folder / name):
                config = {**config, _QUANTIZATION: {"quant_method": method, **read_object(folder / name)}}
                break
    return FolderFiles(folder, config, read_object(generation) if present(generation) else None)


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
