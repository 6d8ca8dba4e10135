"""A tuned target as a model of its own: W + scale * B A in place of W, written as a Hugging Face folder.

It needs no adapter at run time, so its layers are computed in fused calls again. Rounding differs: the sums are rounded
to float16, where an adapter leaves the original's weights as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from outpace.errors import UsageError
from outpace.models.architecture import architectures
from outpace.models.checkpoint import TUNED_BY, Checkpoint
from outpace.models.config import Config
from outpace.train.adapt.export import read_result
from outpace.train.distill.folder import Shape, student_config, write_folder
from outpace.train.networks.transformer import Dequantised
from outpace.weights.adapter import open_adapter


def merged_config(original: Checkpoint) -> Config:
    """Return the config.json of a merged model; raises UsageError for an original that cannot be such a folder."""
    count, width = original.config["num_hidden_layers"], original.config["intermediate_size"]
    config = student_config(original, Shape(tuple(range(count)), width))
    if architectures()[config["model_type"]].pairs:
        raise UsageError(f"--merge: a {config['model_type']} model cannot be written as a folder yet: leave it out")
    return config


def write_merged(folder: Path, original: Checkpoint, adapter: Path) -> None:
    """Write the original with an adapter's changes in its matrices, float16, with its config and tokenizer.

    The config says by which adapter (`outpace_tuned_by`), so that its heads know it again.
    """
    own = open_adapter(adapter)
    config = merged_config(original) | {TUNED_BY: own.fingerprint.hex()}
    write_folder(folder, original, config, _Merged(Dequantised(original.tensors), adapter, own.scale))


class _Merged(Mapping[str, Tensor]):
    """The tensors of a checkpoint with an adapter's changes, each made when it is asked for."""

    def __init__(self, tensors: Mapping[str, Tensor], adapter: Path, scale: float) -> None:
        self._tensors, self._changes, self._scale = tensors, read_result(adapter), scale

    def __getitem__(self, name: str) -> Tensor:
        own, place = self._tensors[name], name.removesuffix(".weight")
        if f"{place}.lora_a" not in self._changes:
            return own
        return own + self._scale * (self._changes[f"{place}.lora_b"] @ self._changes[f"{place}.lora_a"])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
