"""Make a model smaller: a GGUF file of it, or its tensors while it is loaded, both rounded alike."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from outpace.errors import UsageError
from outpace.models.checkpoint import TUNED_BY, Checkpoint, open_checkpoint
from outpace.models.mixture import FILE_TYPES, format_named, format_of
from outpace.models.select import tensors
from outpace.models.to_gguf import Stored, gguf_network
from outpace.ops.formats import dequantise
from outpace.ops.protocol import Ops
from outpace.tokenizer.to_gguf import gguf_tokenizer
from outpace.types import Quantization, RawTensor
from outpace.weights.catalog import resolve
from outpace.weights.gguf import read_gguf
from outpace.weights.gguf_writer import Planned, write_gguf

_CHUNK = 1 << 22  # numbers that are rounded at once

Floats = NDArray[np.float32]


@runtime_checkable
class Rounds(Protocol):
    """Ops that round."""

    def round(self, x: Floats, format: str) -> NDArray[np.uint8]:
        """Return float32 [n, width] in a format, [n, bytes per row]."""


class Quantised(NamedTuple):
    """What `quantize` wrote."""

    path: Path
    num_bytes: int
    formats: Mapping[str, int]  # how many tensors have each


def quantize(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    format: Quantization = "q4_k",
    *,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Quantised:
    """Write a model as a GGUF file with quantised weights, which llama.cpp loads too.

    model: a Hugging Face folder, a hub id, or a GGUF file with F32, F16 or BF16 weights. format: of most matrices;
    `outpace.models.mixture` says which tensors keep more bits. progress(done, total): bytes of the new file.

    The file is written whole or not at all, tensor by tensor. Raises UsageError for what cannot be read or written and
    for a model whose matrices are quantised already, WeightsError or TokenizerError for one that GGUF files cannot
    describe.
    """
    wanted, path = format_named(format), Path(output)
    ops = _native(threads)
    checkpoint = open_checkpoint(resolve(os.fspath(model)))
    if path.exists() and os.path.samefile(path, checkpoint.path):
        raise UsageError(f"{path}: is the model itself: name another file for the quantised one")
    metadata, stored = _file(checkpoint) if checkpoint.gguf else _folder(checkpoint)
    num_layers, tied = checkpoint.config["num_hidden_layers"], checkpoint.config["tie_word_embeddings"]
    planned = [
        Planned(name, format_of(name, shape, kind, wanted, num_layers, tied), shape) for name, shape, kind, _ in stored
    ]
    if all(own.format == new.format for own, new in zip(stored, planned, strict=True) if len(own.shape) > 1):
        raise _nothing_to_round(checkpoint)
    metadata |= {"general.file_type": FILE_TYPES[wanted], "general.quantization_version": 2}

    def content(i: int) -> RawTensor:
        return rounded(stored[i].read(), planned[i].format, ops)

    num_bytes = write_gguf(path, metadata, planned, content, progress)
    return Quantised(path, num_bytes, Counter(tensor.format for tensor in planned))


def _nothing_to_round(checkpoint: Checkpoint) -> UsageError:
    return UsageError(
        f"{checkpoint.path}: has no F32, F16 or BF16 matrices that could be rounded: give the model that it was made "
        "from"
    )


def _folder(checkpoint: Checkpoint) -> tuple[dict[str, Any], list[Stored]]:
    metadata, stored = gguf_network(checkpoint)
    name = checkpoint.path.resolve().name
    tokenizer = gguf_tokenizer(checkpoint.path, checkpoint.config["vocab_size"], name)
    tuned = {} if checkpoint.tuned_by is None else {f"general.{TUNED_BY}": checkpoint.tuned_by}
    return metadata | {"general.type": "model", "general.name": name} | tuned | tokenizer, stored


def _file(checkpoint: Checkpoint) -> tuple[dict[str, Any], list[Stored]]:
    """Return a GGUF file's metadata and tensors, as they are there."""
    file = read_gguf(checkpoint.path)
    metadata = {key: value for key, value in file.metadata.items() if not key.startswith("split.")}
    metadata.pop("general.alignment", None)
    stored = [Stored(t.name, t.shape, t.format, lambda t=t: t) for t in file.tensors.values()]  # type: ignore[misc]
    return metadata, stored


def _native(threads: int | None) -> Rounds:
    """Return the native ops, on so many threads (None: the cores available)."""
    try:
        from outpace.ops.native import NativeOps
    except ImportError as error:
        raise UsageError(
            f"the native ops, which quantise, are not installed ({error}): reinstall outpace where a C++ compiler is "
            "present (pip install --force-reinstall outpace)"
        ) from error
    return NativeOps(threads=threads)


def rounded(tensor: RawTensor, format: str, ops: Rounds) -> RawTensor:
    """Return the tensor in another format, chunk by chunk; as it is, where it has that format."""
    if tensor.format == format:
        return tensor
    width, rows = tensor.shape[-1], math.prod(tensor.shape[:-1])
    step = max(1, _CHUNK // width)
    parts = []
    for first in range(0, rows, step):
        data = tensor.data[first : first + step]
        chunk = RawTensor(tensor.name, data, tensor.format, (len(data), width))
        parts.append(_encoded(dequantise(chunk), format, ops))
    return RawTensor(tensor.name, np.concatenate(parts), format, tensor.shape)


def _encoded(x: Floats, format: str, ops: Rounds) -> NDArray[np.uint8]:
    if format == "F32":
        return np.ascontiguousarray(x, "<f4").view(np.uint8)
    if format == "F16":
        with np.errstate(over="ignore"):
            return x.astype("<f2").view(np.uint8)
    return ops.round(x, format)


class Rounded(Mapping[str, RawTensor]):
    """The tensors of a model under our names, each in the format that `quantize` would give it, when asked for."""

    def __init__(self, checkpoint: Checkpoint, format: str, ops: Ops) -> None:
        """Raises UsageError for a format that nothing is rounded to, ops that do not round, and nothing to round."""
        self._wanted = format_named(format, "quantize")
        if not isinstance(ops, Rounds):
            raise UsageError(f"the {ops.name} ops compute in float32 and cannot quantize: use the native ops")
        self._tensors, self._ops = checkpoint.tensors, ops
        self._gguf = {tensor.name: tensor.gguf for tensor in tensors(checkpoint.config)}
        self._num_layers = checkpoint.config["num_hidden_layers"]
        self._tied = checkpoint.config["tie_word_embeddings"]
        if all(self.outline(name).format == self._tensors.outline(name).format for name in self):
            raise _nothing_to_round(checkpoint)

    def outline(self, name: str) -> RawTensor:
        """Return a tensor without its bytes: its format and shape."""
        now = self._tensors.outline(name)
        if len(now.shape) == 1:
            return now
        kind = format_of(self._gguf[name], now.shape, now.format, self._wanted, self._num_layers, self._tied)
        return replace(now, format=kind)

    def __getitem__(self, name: str) -> RawTensor:
        tensor = self._tensors[name]
        return tensor if len(tensor.shape) == 1 else rounded(tensor, self.outline(name).format, self._ops)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
