"""Take the tensors of a model out of a file: under our names, in the form in which the network multiplies them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from outpace.errors import WeightsError
from outpace.models.architecture import Architecture, architecture_of
from outpace.models.config import Config, ModelConfig
from outpace.models.tensors import Source, Tensor, embedding, final_norm, output
from outpace.ops.formats import dequantise
from outpace.types import RawTensor
from outpace.types.mapped import release
from outpace.weights.compressed import Converted

_VECTOR_FORMATS = ("F32", "F16", "BF16")
HEADS = {  # place -> whose channels it has; those of one head, where no name is
    **{"wq": "num_heads", "bq": "num_heads", "q_wide_norm": "num_heads", "q_norm": None},
    **{"wk": "num_kv_heads", "bk": "num_kv_heads", "k_wide_norm": "num_kv_heads", "k_norm": None},
}

_NOTHING = np.empty((0, 0), np.uint8)

Change = Callable[[RawTensor], RawTensor]
Stored = RawTensor | Converted


def tensors(config: Config) -> Iterator[Tensor]:
    """Yield every tensor of the model that a checked config describes."""
    for _, tensor in places(architecture_of(config), config):
        yield tensor


def places(architecture: Architecture, config: Config) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a network with its place in it."""
    sizes = architecture.sizes(config)
    yield "embedding", embedding(sizes)
    for index in range(sizes.num_layers):
        for place, tensor in architecture.places(sizes, index).items():
            yield place, tensor.in_layer(index)
    yield "final_norm", final_norm(sizes)
    if not sizes.tied:
        yield "output", output(sizes)


class Selected(Mapping[str, RawTensor]):
    """The tensors of a model under our names; each is put into the network's form when it is asked for.

    stored: those of the file as they are, under a folder's names where folders have the same ones.
    """

    def __init__(
        self,
        wanted: Mapping[str, Tensor],
        source: Source,
        stored: Mapping[str, Stored],
        changes: Mapping[str, Change],
    ):
        self._wanted, self._source, self.stored, self._changes = wanted, source, stored, changes

    def read(self, name: str) -> RawTensor:
        """Return a stored tensor, converted if a folder has it in a form of its own."""
        stored = self.stored[name]
        return stored if isinstance(stored, RawTensor) else stored.read()

    def outline(self, name: str) -> RawTensor:
        """Return a tensor without its bytes: its format and shape."""
        wanted = self._wanted[name]
        whole, stored = wanted.whole(self._source), self.stored[wanted.kept_name(self._source)]
        return RawTensor(name, _NOTHING, (whole and whole.format) or stored.format, wanted.shape)

    def __getitem__(self, name: str) -> RawTensor:
        wanted = self._wanted[name]
        tensor = self.read(wanted.kept_name(self._source))
        if whole := wanted.whole(self._source):
            stored = (tensor, self.read(whole.scales)) if whole.scales else (tensor,)
            tensor = RawTensor(name, whole.cut(*stored), whole.format or tensor.format, wanted.shape)
        if name not in self._changes:
            return tensor
        changed = self._changes[name](tensor)
        release(tensor.data)  # the network reads the changed ones
        return changed

    def __iter__(self) -> Iterator[str]:
        return iter(self._wanted)

    def __len__(self) -> int:
        return len(self._wanted)


def select(found: Mapping[str, Stored], config: Config, source: Source, where: str) -> Selected:
    """Return the tensors that the config calls for.

    Raises WeightsError for tensors that are missing, of another shape, or that would be ignored.
    """
    architecture = architecture_of(config)
    of_network = list(places(architecture, config))
    names = {tensor.stored_name(source): tensor for _, tensor in of_network}
    scales = {whole.scales: whole.shape[:-1] for _, t in of_network if (whole := t.whole(source)) and whole.scales}
    if missing := [name for name in (*names, *scales) if name not in found]:
        raise WeightsError(f"{where}: {_some(missing)} missing: fetch or convert the model again")
    others = sorted(found.keys() - names.keys() - scales.keys())
    if extra := [name for name in others if not _is_idle_bias(name, found)]:
        raise WeightsError(f"{where}: {_some(extra)} in the file, which a {config['model_type']} model does not have")
    for name, wanted in names.items():
        shape, tensor = wanted.stored_shape(source), found[name]
        if tensor.shape != shape:
            raise WeightsError(f"{where}: tensor {name!r} has shape {tensor.shape}, the config says {shape}")
        if len(wanted.shape) == 1 and tensor.format not in _VECTOR_FORMATS:
            raise WeightsError(f"{where}: tensor {name!r} is {tensor.format}, must be {', '.join(_VECTOR_FORMATS)}")
    stored = {(kept := wanted.kept_name(source)): _named(found[name], kept) for name, wanted in names.items()}
    for name, shape in scales.items():
        if found[name].shape != shape:
            raise WeightsError(f"{where}: tensor {name!r} has shape {found[name].shape}, the config says {shape}")
        stored[name] = found[name]
    by_place = _changes(architecture, architecture.sizes(config), source)
    changes = {tensor.name: by_place[place] for place, tensor in of_network if place in by_place}
    return Selected({tensor.name: tensor for _, tensor in of_network}, source, stored, changes)


def _is_idle_bias(name: str, found: Mapping[str, Stored]) -> bool:
    """Whether it is a bias of zeros beside a quantised matrix: old versions of auto-gptq wrote one for each."""
    bias, matrix = found[name], found.get(name.removesuffix(".bias") + ".weight")
    is_beside = name.endswith(".bias") and isinstance(matrix, Converted)
    return is_beside and isinstance(bias, RawTensor) and not bias.data.any()


def _named(tensor: Stored, name: str) -> Stored:
    return replace(tensor, name=name) if isinstance(tensor, RawTensor) else tensor


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{'tensors' if len(names) > 1 else 'tensor'} {', '.join(map(repr, names[:3]))}{more}"


def _changes(architecture: Architecture, sizes: ModelConfig, source: Source) -> dict[str, Change]:
    """Return what is done to the tensors at some places."""
    changes: dict[str, Change] = {}
    pairs = architecture.gguf_pairs if source == "gguf" else architecture.pairs
    order = head_order(sizes.head_width, sizes.rotary_width, pairs)
    if (order != np.arange(sizes.head_width)).any():
        for place, heads in HEADS.items():
            count = getattr(sizes, heads) if heads else 1
            rows = (np.arange(count)[:, None] * sizes.head_width + order).reshape(-1)
            changes[place] = _Reorder(rows)
    if architecture.norms_less_one and source == "folder":
        for place in (*architecture.layer(sizes), "final_norm"):
            if place.endswith("norm"):
                changes[place] = _plus_one
    return changes


def head_order(width: int, rotary_width: int, pairs: bool) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return, for each row of a head in the network, which row of the stored head it is.

    In the network, rows i and i + width / 2 are a pair, those that turn first. In a file, the first `rotary_width`
    rows turn, and partners are neighbours (`pairs`) or half of `rotary_width` apart.
    """
    turning, still = np.arange(rotary_width), np.arange(rotary_width, width)
    first, second = turning.reshape(-1, 2).T if pairs else turning.reshape(2, -1)
    still_first, still_second = still.reshape(2, -1)
    return np.concatenate([first, still_first, second, still_second])


class _Reorder:
    """Moves rows as stored bytes: nothing is converted, and nothing is kept twice."""

    def __init__(self, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
        self._rows = rows

    def __call__(self, tensor: RawTensor) -> RawTensor:
        # A vector is stored as one row: its numbers are moved.
        size = tensor.data.size // len(self._rows)
        moved = np.ascontiguousarray(tensor.data).reshape(len(self._rows), size)[self._rows]
        moved.flags.writeable = False  # so that it is packed while the next one is moved
        return replace(tensor, data=moved.reshape(tensor.data.shape))


def _plus_one(tensor: RawTensor) -> RawTensor:
    numbers = dequantise(tensor) + np.float32(1)
    return RawTensor(tensor.name, numbers.astype("<f4").reshape(1, -1).view(np.uint8), "F32", tensor.shape)
