from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from outpace.ops.reference.storage import Storage
from outpace.types import KVFormat, KVSpec

FORMATS: tuple[KVFormat, ...] = ("f32", "bf16", "int8")


def storage(format: KVFormat, num_blocks: int = 2, head_width: int = 32) -> Storage:
    return Storage(KVSpec(2, 3, head_width, format, block_size=4), num_blocks)


def numbers(num_tokens: int, head_width: int = 32, seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).standard_normal((num_tokens, 3, head_width), np.float32)


@pytest.mark.parametrize("format", FORMATS)
def test_keys_and_values_of_each_layer_and_slot_are_kept_apart(format: KVFormat) -> None:
    kv = storage(format)
    written = {}
    for layer in (0, 1):
        for slot in (1, 6):
            k, v = numbers(1, seed=10 * layer + slot), numbers(1, seed=100 + 10 * layer + slot)
            kv.write(layer, np.array([slot]), k, v)
            written[layer, slot] = k, v
    for (layer, slot), pair in written.items():
        for found, expected in zip(kv.read(layer, np.array([slot])), pair, strict=True):
            np.testing.assert_allclose(found, expected, atol=0.02)


@pytest.mark.parametrize(("format", "tolerance"), [("f32", 0.0), ("bf16", 2.0**-8), ("int8", 0.5 / 127)])
def test_a_number_is_rounded_to_the_nearest_that_the_format_holds(format: KVFormat, tolerance: float) -> None:
    kv, k = storage(format), numbers(8)
    kv.write(0, np.arange(8), k, k)
    found, _ = kv.read(0, np.arange(8))
    scale = np.abs(k) if format != "int8" else np.abs(k).max(axis=-1, keepdims=True)
    assert (np.abs(found - k) <= 1.001 * tolerance * scale).all()
    assert (found != k).any() == (format != "f32")


@pytest.mark.parametrize("format", FORMATS)
def test_what_was_rounded_once_is_not_rounded_again(format: KVFormat) -> None:
    kv, k = storage(format), numbers(4)
    kv.write(0, np.arange(4), k, k)
    once, _ = kv.read(0, np.arange(4))
    kv.write(1, np.arange(4), once, once)
    np.testing.assert_array_almost_equal_nulp(kv.read(1, np.arange(4))[0], once, nulp=1)


def test_int8_takes_a_scale_for_each_group_of_channels_and_keeps_zeros() -> None:
    kv, k = storage("int8", head_width=64), numbers(1, 64)
    k[:, :, 32:] *= 1e-3  # a scale for the whole head would round all of these to zero
    k[0, 0] = 0
    kv.write(0, np.array([0]), k, k)
    found, _ = kv.read(0, np.array([0]))
    assert np.abs(found - k)[..., 32:].max() < 2e-5
    assert (found[0, 0] == 0).all()


@pytest.mark.parametrize("format", FORMATS)
def test_a_moved_slot_takes_everything_along_in_every_layer(format: KVFormat) -> None:
    kv = storage(format)
    for layer in (0, 1):
        kv.write(layer, np.array([2, 7]), numbers(2, seed=layer), numbers(2, seed=5 + layer))
    before = [kv.read(layer, np.array([2])) for layer in (0, 1)]
    kv.move(2, 7)
    for layer in (0, 1):
        for found, expected in zip(kv.read(layer, np.array([7])), before[layer], strict=True):
            assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("format", FORMATS)
def test_growing_keeps_what_is_stored_and_shrinking_is_our_own_bug(format: KVFormat) -> None:
    kv, k = storage(format, 1), numbers(4)
    kv.write(1, np.arange(4), k, -k)
    before = kv.read(1, np.arange(4))
    kv.grow(3)
    assert kv.num_slots == 12
    kv.write(1, np.array([11]), k[:1], k[:1])
    for found, expected in zip(kv.read(1, np.arange(4)), before, strict=True):
        assert found.tobytes() == expected.tobytes()
    with pytest.raises(AssertionError, match="never shrinks"):
        kv.grow(2)
