"""Keys and values as the cache stores them: float32, bfloat16, or int8 with a scale per group of channels.

A token is rounded once, when it is written; everybody, itself included, reads what was stored. So a token reads the
same before and after its commit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from outpace.types import KVSpec

Floats = NDArray[Any]
Stored = tuple[NDArray[Any], ...]

_DTYPES: dict[str, Any] = {"f32": np.float32, "bf16": np.uint16, "int8": np.int8}


class Storage:
    """One paged cache: for keys and for values an array [layers, slots, G, K], and for int8 its scales.

    Memory is taken by the operating system when a slot is first written, and never read before.
    """

    def __init__(self, spec: KVSpec, num_blocks: int) -> None:
        self.spec = spec
        self.num_slots = num_blocks * spec.block_size
        self._keys = self._allocate(self.num_slots)
        self._values = self._allocate(self.num_slots)

    def _allocate(self, num_slots: int) -> Stored:
        spec = self.spec
        shape = (spec.num_layers, num_slots, spec.num_kv_heads)
        numbers = np.empty((*shape, spec.head_width), _DTYPES[spec.format])
        if spec.format != "int8":
            return (numbers,)
        return numbers, np.empty((*shape, spec.head_width // spec.scale_group), np.float32)

    def grow(self, num_blocks: int) -> None:
        """Grow to `num_blocks` blocks; what is stored stays."""
        old_slots, old = self.num_slots, (*self._keys, *self._values)
        assert num_blocks * self.spec.block_size >= old_slots, "storage never shrinks"
        num_slots = num_blocks * self.spec.block_size
        keys, values = self._allocate(num_slots), self._allocate(num_slots)  # may raise: nothing has changed then
        for new_part, old_part in zip((*keys, *values), old, strict=True):
            new_part[:, :old_slots] = old_part
        self.num_slots, self._keys, self._values = num_slots, keys, values

    def move(self, source: int, target: int) -> None:
        """Copy one slot in all layers."""
        for part in (*self._keys, *self._values):
            part[:, target] = part[:, source]

    def write(self, layer: int, slots: NDArray[np.int64], k: Floats, v: Floats) -> None:
        """Store keys and values [T, G, K] of a layer into physical slots [T]."""
        for parts, x in ((self._keys, k), (self._values, v)):
            for part, numbers in zip(parts, _encode(x.astype(np.float32), self.spec), strict=True):
                part[layer, slots] = numbers

    def read(self, layer: int, slots: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Return the keys and values of physical slots [n] as float32 [n, G, K]."""
        k, v = (_decode([part[layer, slots] for part in parts], self.spec) for parts in (self._keys, self._values))
        return k, v


def _encode(x: NDArray[np.float32], spec: KVSpec) -> Stored:
    if spec.format == "f32":
        return (x,)
    if spec.format == "bf16":
        bits = x.view(np.uint32)
        # To the nearest upper half; a tie goes to the one whose last bit is 0.
        return (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16),)
    groups = x.reshape(*x.shape[:-1], -1, spec.scale_group)
    scales = np.abs(groups).max(axis=-1) / np.float32(127)
    divisor = np.where(scales == 0, np.float32(1), scales)[..., None]
    return np.rint(groups / divisor).astype(np.int8).reshape(x.shape), scales


def _decode(parts: list[NDArray[Any]], spec: KVSpec) -> NDArray[np.float32]:
    numbers = parts[0]
    if spec.format == "f32":
        return numbers
    if spec.format == "bf16":
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    groups = numbers.reshape(*numbers.shape[:-1], -1, spec.scale_group)
    return np.asarray((groups.astype(np.float32) * parts[1][..., None]).reshape(numbers.shape))
