"""The network of all architectures: embedding, decoder layers, final norm, output product; and how it is built.

Which parts a layer has is its architecture's choice; how they follow each other is `compose_decoder_layer`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from outpace.errors import UsageError, WeightsError
from outpace.models.architecture import architecture_of
from outpace.models.config import Config, ModelConfig, Rotation
from outpace.models.experts import EXPERTS, expert_sizes
from outpace.models.key_scale import key_scale
from outpace.models.tensors import Places, Tensor, embedding, final_norm, output
from outpace.ops.compose import compose_decoder_layer
from outpace.ops.layers import KV, Array, DecoderLayer, Experts, Layer, Plan, Rope, Vector, Weight
from outpace.ops.protocol import Ops
from outpace.types import KVFormat, KVSpec, RawTensor


class Stage(Protocol):
    """What a network runs one after another: some of its layers."""

    @property
    def num_layers(self) -> int:
        """How many layers it is."""

    def forward(self, ops: Ops, x: Array, kv: KV, plan: Plan) -> Array:
        """Return x after the stage, [T, D]."""


class Packed(Protocol):
    """Matrices that may have been packed before."""

    def take(self, name: str, shape: tuple[int, ...], pack: Callable[[], Weight]) -> Weight:
        """Return a matrix as it was packed before, or else what `pack` makes."""


@dataclass(frozen=True, slots=True)
class Block:
    """A decoder layer: its parts, those of them that ops runs by themselves, and whether ops runs the whole of it."""

    parts: DecoderLayer
    handle: Layer
    is_fused: bool
    num_layers = 1

    def forward(self, ops: Ops, x: Array, kv: KV, plan: Plan) -> Array:
        """Return x after the layer, [T, D]."""
        if self.is_fused:
            return ops.decoder_layers(x, (self.handle,), kv, plan)
        return compose_decoder_layer(ops, x, self.parts, self.handle, kv, plan)


@dataclass(frozen=True, slots=True)
class Run:
    """Fused layers between which nobody looks: one call."""

    handles: tuple[Layer, ...]

    @property
    def num_layers(self) -> int:
        """How many layers it is."""
        return len(self.handles)

    def forward(self, ops: Ops, x: Array, kv: KV, plan: Plan) -> Array:
        """Return x after the layers, [T, D]."""
        return ops.decoder_layers(x, self.handles, kv, plan)


@dataclass(frozen=True, slots=True)
class Transformer:
    """A network ready to run: handles of one ops implementation, and what the cache must know.

    stages: the layers, by what is tapped, in as few calls as that allows.
    """

    config: ModelConfig
    ops: Ops
    embedding: Weight
    layers: tuple[Block, ...]
    norm: Vector
    output: Weight
    stages: dict[tuple[int, ...], tuple[Stage, ...]] = field(default_factory=dict, init=False, compare=False)

    def spec(self, format: KVFormat) -> KVSpec:
        """Return the geometry of the keys and values that this network caches."""
        config = self.config
        return KVSpec(config.num_layers, config.num_kv_heads, config.head_width, format)

    @property
    def max_window(self) -> int | None:
        """How far back any layer reads, itself included; None: to the beginning."""
        return self.config.max_window

    def forward(self, plan: Plan, kv: KV, taps: Sequence[int] = ()) -> tuple[Array, dict[int, Array]]:
        """Return the logits of the plan's scored rows, [R, V], and the hidden states at each tap, [T, D].

        Writes keys and values into their slots. Tap 0 is the embedding, i the output of the i-th layer (1 ... n), and
        n + 1 that of the final norm. Logits have the same bits whatever is tapped. Raises UsageError for other taps.
        """
        tapped = tuple(taps)
        stages = self.stages.get(tapped)
        if stages is None:
            stages = self.stages[tapped] = _runs(self.layers, tapped)
        return self.through(self.embed(plan), stages, plan, kv, taps)

    def through(
        self, x: Array, stages: Sequence[Stage], plan: Plan, kv: KV, taps: Sequence[int]
    ) -> tuple[Array, dict[int, Array]]:
        """Return what `forward` does, for embedded tokens x [T, D] and stages in place of the network's own layers.

        A stage ends at every tap.
        """
        last = self.config.num_layers + 1
        for tap in taps:
            if not 0 <= tap <= last:
                raise UsageError(
                    f"tap {tap} is outside [0, {last}]: 0 is the embedding, 1 to {last - 1} are the layers' outputs, "
                    f"{last} is the final norm's"
                )
        hidden = {0: x} if 0 in taps else {}
        done = 0
        for stage in stages:
            x = stage.forward(self.ops, x, kv, plan)
            done += stage.num_layers
            if done in taps:
                hidden[done] = x
        if last in taps:
            hidden[last] = self.ops.rms_norm(x, self.norm, self.config.eps)
        return self._logits(x, plan), hidden

    def embed(self, plan: Plan) -> Array:
        """Return what the first layer reads of the plan's tokens, [T, D]."""
        x, scale = self.ops.embed(self.embedding, plan), self.config.embedding_scale
        return x if scale == 1.0 else self.ops.scale(x, scale)

    def rope_for(self, head_width: int, inv_freq: Sequence[float] | None, scale: float) -> Rope:
        """Return the rotary table of a drafter on this network, with frequencies of its own or (None) the network's.

        Raises WeightsError for heads that the network's frequencies do not fit.
        """
        config = self.config
        if inv_freq is None and head_width != config.head_width:
            raise WeightsError(f"the drafter's heads are {head_width} wide, the target's {config.head_width}")
        if inv_freq is None:
            inv_freq, scale = config.inv_freq, config.rope_scale
        return self.ops.rope(np.array(inv_freq, np.float64), scale, config.context)

    def _logits(self, x: Array, plan: Plan) -> Array:
        ops, config = self.ops, self.config
        logits = ops.logits(x, self.norm, config.eps, self.output, plan)
        if config.logit_scale != 1.0:
            logits = ops.scale(logits, config.logit_scale)
        return logits if config.logit_cap is None else ops.soft_cap(logits, config.logit_cap)


def _runs(layers: Sequence[Block], taps: Sequence[int]) -> tuple[Stage, ...]:
    """Return the layers with those that are fused joined, but for a cut at each tap."""
    stages: list[Stage] = []
    handles: list[Layer] = []
    for i, layer in enumerate(layers, 1):
        if layer.is_fused:
            handles.append(layer.handle)
        if handles and (not layer.is_fused or i in taps or i == len(layers)):
            stages.append(Run(tuple(handles)))
            handles = []
        if not layer.is_fused:
            stages.append(layer)
    return tuple(stages)


def build(
    config: Config,
    tensors: Mapping[str, RawTensor],
    ops: Ops,
    context: int | None = None,
    packed: Packed | None = None,
) -> Transformer:
    """Return the network that a checked config describes, with its tensors packed by `ops`.

    context: how many positions are wanted, for networks that differ by that (longrope: short or long factors).
    packed: matrices of this model that need not be packed again.
    WeightsError for a missing tensor, a wrong shape, or a tensor that the network has no place for: leaving it out
    would change the text.
    """
    architecture, config = architecture_of(config), config | ({} if context is None else {"context": context})
    sizes, shelf = architecture.sizes(config), _Shelf(tensors, ops, packed)
    ropes = _Ropes(ops, sizes.context)
    table = shelf.take(embedding(sizes))
    layers = tuple(
        _block(ops, _parts(shelf, architecture.places(sizes, index), sizes, ropes.of(sizes.rotation(index)), index))
        for index in range(sizes.num_layers)
    )
    norm = shelf.take(final_norm(sizes))
    matrix = table if sizes.tied else shelf.take(output(sizes))
    shelf.refuse_leftovers(sizes.model_type)
    return Transformer(sizes, ops, table, layers, norm, matrix)


def _block(ops: Ops, parts: DecoderLayer) -> Block:
    return Block(parts, ops.layer(parts), parts.is_plain)


def _parts(shelf: _Shelf, places: Places, sizes: ModelConfig, rope: Rope, index: int) -> DecoderLayer:
    return DecoderLayer(
        index=index,
        rope=rope,
        num_heads=sizes.num_heads,
        num_kv_heads=sizes.num_kv_heads,
        head_width=sizes.head_width,
        eps=sizes.eps,
        window=sizes.windows[index],
        scale=sizes.attention_scale,
        query_growth=sizes.query_growth,
        activation=sizes.activation,
        residual_scale=sizes.residual_scale,
        key_scale=_key_scale(shelf, places, sizes, index),
        **_joined({place: shelf.take(tensor.in_layer(index)) for place, tensor in places.items()}, sizes),
    )


def _key_scale(shelf: _Shelf, places: Places, sizes: ModelConfig, index: int) -> Vector | None:
    """Return the factors of a layer's keys, where a bias is the last thing that is added to them before rope."""
    if "bk" not in places or not places.keys().isdisjoint(("k_norm", "k_wide_norm")):
        return None
    bias, matrix, norm = (
        shelf.raw(places[p].in_layer(index)) if p in places else None for p in ("bk", "wk", "attn_norm")
    )
    assert bias is not None, "asked above"
    assert matrix is not None, "every layer has one"
    factors = key_scale(bias, matrix, norm, sizes.num_kv_heads)
    return None if factors is None else shelf.ops.vector(factors)


def _joined(taken: dict[str, Any], sizes: ModelConfig) -> dict[str, Any]:
    """Return handles by the field of `DecoderLayer` that they fill: those of experts together fill one."""
    parts: dict[str, Any] = {}
    for place in [place for place in taken if place.startswith(EXPERTS)]:
        field, _, index = place.removeprefix(EXPERTS).partition(".")
        handle = taken.pop(place)
        parts[field] = (*parts.get(field, ()), handle) if index else handle
    if not parts:
        return taken
    own = expert_sizes(sizes)
    return taken | {"experts": Experts(num_chosen=own.num_chosen, is_normalised=own.is_normalised, **parts)}


class _Ropes:
    """The rotary tables of a network, one for each way to turn."""

    def __init__(self, ops: Ops, context: int) -> None:
        self._ops, self._context = ops, context
        self._tables: dict[Rotation, Rope] = {}

    def of(self, rotation: Rotation) -> Rope:
        if rotation not in self._tables:
            inv_freq = np.array(rotation.inv_freq, np.float64)
            self._tables[rotation] = self._ops.rope(inv_freq, rotation.scale, self._context)
        return self._tables[rotation]


class _Shelf:
    """The tensors of a file, taken off one by one: raw bytes are let go as soon as they are packed."""

    def __init__(self, tensors: Mapping[str, RawTensor], ops: Ops, packed: Packed | None) -> None:
        self._tensors, self._left, self._packed = tensors, set(tensors), packed
        self.ops = ops

    def take(self, wanted: Tensor) -> Any:
        """Return the handle of a tensor: a packed matrix, or a vector."""
        if len(wanted.shape) != 2:
            handle: Any = self.ops.vector(self.raw(wanted))
        elif self._packed is None or wanted.name not in self._left:
            handle = self.ops.pack(self.raw(wanted))
        else:
            handle = self._packed.take(wanted.name, wanted.shape, lambda: self.ops.pack(self.raw(wanted)))
        self._left.remove(wanted.name)
        return handle

    def raw(self, wanted: Tensor) -> RawTensor:
        """Return a tensor as it is stored, and leave it there."""
        if wanted.name not in self._left:
            raise WeightsError(f"tensor {wanted.name!r} of shape {wanted.shape} is missing")
        tensor = self._tensors[wanted.name]
        if tensor.shape != wanted.shape:
            raise WeightsError(
                f"tensor {wanted.name!r} must have the shape {wanted.shape} by the config, the file has {tensor.shape}"
            )
        return tensor

    def refuse_leftovers(self, model_type: str) -> None:
        """Raise if something is left that changes the network: a bias, a norm or a layer that we would not run."""
        # Old files store the rotary frequencies, which the config gives.
        left = [name for name in self._tensors if name in self._left and not name.endswith("rotary_emb.inv_freq")]
        if left:
            raise WeightsError(
                f"tensor {left[0]!r} has no place in a network of type {model_type!r} with this config "
                f"({len(left)} such tensors): the file is of another architecture, or damaged"
            )
