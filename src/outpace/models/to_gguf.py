"""Say in GGUF's words what a network is: the reverse of `outpace.models.gguf` and `outpace.models.select`.

Names and metadata are those that llama.cpp's converter writes (convert_hf_to_gguf.py at commit
0c1e57098bba43ac29e6e3b677cdceebdd22334f). Whatever a file cannot say is refused: the metadata are read back, and must
give the network's own numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from outpace.errors import WeightsError
from outpace.models.architecture import Architecture, architecture_of, normalise, sizes
from outpace.models.checkpoint import Checkpoint
from outpace.models.config import Config, ModelConfig
from outpace.models.experts import EXPERTS
from outpace.models.gguf import KEYS, ROPE_FACTORS, raw_config
from outpace.models.keys import SLIDING
from outpace.models.rope import frequencies
from outpace.models.select import HEADS, Selected, head_order, places
from outpace.ops.formats import dequantise
from outpace.types import RawTensor
from outpace.weights.gguf import GGUFFile
from outpace.weights.values import shown

_PATTERN = "attention.sliding_window_pattern"
_LONGROPE = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}
_NOT_COMPARED = {"model_type"}  # llama is mistral without a window


class Stored(NamedTuple):
    """A tensor of a GGUF file: its name, its shape, its format now, and what reads it."""

    name: str
    shape: tuple[int, ...]
    format: str
    read: Callable[[], RawTensor]


def gguf_network(checkpoint: Checkpoint) -> tuple[dict[str, Any], list[Stored]]:
    """Return the metadata and the tensors that describe the network of a folder.

    Raises WeightsError for a network that GGUF files of its architecture cannot describe.
    """
    config, architecture = checkpoint.config, architecture_of(checkpoint.config)
    metadata = {f"{architecture.gguf}.{key}": value for key, value in _entries(config, architecture).items()}
    metadata = {"general.architecture": architecture.gguf, **metadata}
    tensors = [*_rope_tensors(config), *_tensors(checkpoint, architecture)]
    _check(checkpoint, architecture, metadata, tensors)
    return metadata, tensors


def _entries(config: Config, architecture: Architecture) -> dict[str, Any]:
    """Return the metadata behind the architecture's name."""
    keys = KEYS | dict(architecture.gguf_keys)
    found = {theirs: config[ours] for ours, theirs in keys.items() if config.get(ours) is not None}
    found.setdefault("feed_forward_length", config["intermediate_size"])
    found["attention.value_length"] = config["head_dim"]
    found["rope.dimension_count"] = int(config["head_dim"] * config.get("partial_rotary_factor", 1.0))
    kinds = set(config["layer_types"])
    if "sliding_window" in architecture.gguf_keys and len(kinds) > 1:
        found[_PATTERN] = [kind == SLIDING for kind in config["layer_types"]]
    return found | _scaling(config)


def _scaling(config: Config) -> dict[str, Any]:
    """Return the metadata of a scaled rope; what llama3 and longrope say lies in tensors."""
    scaling = config["rope_scaling"] or {}
    kind = scaling.get("rope_type")
    if kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling["factor"])}
    if kind == "longrope":
        return {"rope.scaling.attn_factor": sizes(config).rope_scale}
    if kind != "yarn":
        return {}
    original = scaling.get("original_max_position_embeddings", config["max_position_embeddings"])
    found = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(scaling["factor"]),
        "rope.scaling.original_context_length": original,
    }
    found |= {
        f"rope.scaling.yarn_{name}": float(scaling[name]) for name in ("beta_fast", "beta_slow") if name in scaling
    }
    stretch = 0.1 * math.log(scaling["factor"])
    usual = (stretch + 1.0) / (stretch * (config.get("mscale_all_dim") or 0.0) + 1.0)
    extra = sizes(config).rope_scale / usual
    return found if math.isclose(extra, 1.0, rel_tol=1e-6) else found | {"rope.scaling.attn_factor": extra}


def _rope_tensors(config: Config) -> list[Stored]:
    scaling, width = config["rope_scaling"] or {}, config["head_dim"]
    if scaling.get("rope_type") == "longrope":
        return [_numbers(name, scaling[key]) for key, name in _LONGROPE.items()]
    if scaling.get("rope_type") != "llama3":
        return []
    plain, _ = frequencies(config["rope_theta"], width, {}, config["max_position_embeddings"])
    scaled, _ = frequencies(config["rope_theta"], width, scaling, config["max_position_embeddings"])
    return [_numbers(ROPE_FACTORS, plain / scaled)]


def _numbers(name: str, values: Any) -> Stored:
    numbers = np.asarray(values, "<f4")
    return Stored(name, numbers.shape, "F32", lambda: _vector(name, numbers))


def _vector(name: str, numbers: np.ndarray[Any, np.dtype[np.float32]]) -> RawTensor:
    return RawTensor(name, np.ascontiguousarray(numbers, "<f4").view(np.uint8).reshape(1, -1), "F32", numbers.shape)


def _tensors(checkpoint: Checkpoint, architecture: Architecture) -> list[Stored]:
    """Return the network's tensors, each as often as a file holds it: parts of one are one."""
    network, found, stacks = sizes(checkpoint.config), dict[str, Stored](), dict[str, list[str]]()
    for place, tensor in places(architecture, checkpoint.config):
        name, shape = tensor.stored_name("gguf"), tensor.stored_shape("gguf")
        if place.startswith(EXPERTS) and tensor.in_gguf:
            stacks.setdefault(name, []).append(tensor.name)
            if name not in found:
                own = "F32" if len(tensor.shape) == 1 else checkpoint.tensors[tensor.name].format
                found[name] = Stored(name, shape, own, _Stacking(checkpoint, name, shape, stacks[name]))
            continue
        if name in found:
            continue
        kept = tensor.kept_name("folder")
        whole = checkpoint.tensors.stored[kept]
        format = whole.format if len(whole.shape) > 1 else "F32"
        adds_one = architecture.norms_less_one and place.endswith("norm")
        read = _Reading(checkpoint.tensors, kept, name, _rows(place, network, architecture), adds_one)
        found[name] = Stored(name, whole.shape, format, read)
    return list(found.values())


def _rows(place: str, network: ModelConfig, architecture: Architecture) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    """Return which row of the folder's tensor each row of the file's is; None: the same.

    A head's row i of the network is row in_folder[i] there, and row in_file[i] here.
    """
    if place not in HEADS or architecture.pairs == architecture.gguf_pairs:
        return None
    in_folder = head_order(network.head_width, network.rotary_width, architecture.pairs)
    in_file = head_order(network.head_width, network.rotary_width, architecture.gguf_pairs)
    order = np.empty_like(in_file)
    order[in_file] = in_folder
    heads = HEADS[place]
    count = getattr(network, heads) if heads else 1
    return (np.arange(count)[:, None] * network.head_width + order).reshape(-1)


class _Stacking:
    """Puts the tensors of a layer's experts, one behind the other, into the one of a GGUF file; vectors as F32."""

    def __init__(self, checkpoint: Checkpoint, name: str, shape: tuple[int, ...], parts: list[str]) -> None:
        self._checkpoint, self._name, self._shape, self._parts = checkpoint, name, shape, parts

    def __call__(self) -> RawTensor:
        tensors = [self._checkpoint.tensors[part] for part in self._parts]
        if len({tensor.format for tensor in tensors}) > 1:
            raise WeightsError(f"{self._checkpoint.path}: the experts of {self._name} are stored in several formats")
        if len(tensors[0].shape) == 1:
            numbers = np.stack([dequantise(tensor) for tensor in tensors]).astype("<f4")
            return RawTensor(self._name, numbers.view(np.uint8), "F32", self._shape)
        data = np.concatenate([tensor.data for tensor in tensors])
        return RawTensor(self._name, data, tensors[0].format, self._shape)


class _Reading:
    """Reads a folder's tensor and puts it into the form of a GGUF file."""

    def __init__(
        self,
        tensors: Selected,
        kept: str,
        name: str,
        rows: np.ndarray[Any, np.dtype[np.int64]] | None,
        adds_one: bool,
    ) -> None:
        self._tensors, self._kept, self._name = tensors, kept, name
        self._rows, self._adds_one = rows, adds_one

    def __call__(self) -> RawTensor:
        found = replace(self._tensors.read(self._kept), name=self._name)
        if len(found.shape) > 1:
            return found if self._rows is None else replace(found, data=found.data[self._rows])
        numbers = dequantise(found) + np.float32(self._adds_one)
        return _vector(found.name, numbers if self._rows is None else numbers[self._rows])


def _check(
    checkpoint: Checkpoint, architecture: Architecture, metadata: Mapping[str, Any], tensors: list[Stored]
) -> None:
    """Raise WeightsError unless a reader of the metadata makes the same network of them."""
    small = {s.name: s.read() for s in tensors if s.name == ROPE_FACTORS or s.name in architecture.gguf_tensors}
    names = {s.name: RawTensor(s.name, np.empty((0, 0), np.uint8), "F32", s.shape) for s in tensors}
    file = GGUFFile(Path("the file"), {key: _rounded(value) for key, value in metadata.items()}, names | small)
    try:
        read = asdict(sizes(normalise(raw_config(file, architecture)[0], "the file")))
    except WeightsError as error:
        raise WeightsError(f"{checkpoint.path}: cannot be said in a GGUF file: {error}") from error
    stored = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
    for name, wanted in asdict(sizes(stored)).items():
        if name not in _NOT_COMPARED and not _same(wanted, read[name]):
            raise WeightsError(
                f"{checkpoint.path}: cannot be said in a GGUF file of architecture {architecture.gguf}: {name} is "
                f"{shown(wanted)}, a reader would take it for {shown(read[name])}"
            )


def _rounded(value: Any) -> Any:
    return float(np.float32(value)) if isinstance(value, float) else value


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-5)
    return bool(a == b)
