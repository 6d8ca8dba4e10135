from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import outpace
from outpace.api.preflight import Needs, check_room, inspect_model, needs
from outpace.api.quantise import Rounded
from outpace.errors import UsageError
from outpace.models.checkpoint import open_checkpoint
from outpace.ops.protocol import Ops
from outpace.ops.reference import ReferenceOps
from tests.folder import make_folder

ENOUGH = 10**9


def limited(num_bytes: int) -> Ops:
    ops = ReferenceOps()
    ops.memory_bytes = num_bytes
    return ops


def found(folder: Path, num_bytes: int = ENOUGH, **options: Any) -> Needs:
    return needs(open_checkpoint(folder), limited(num_bytes), **{"kv": "bf16", **options})


def test_needs_are_the_bytes_of_weights_and_of_the_cache_that_was_asked_for(folder: Path) -> None:
    lm = outpace.load(folder, ops=ReferenceOps())
    plain = found(folder)
    matrices = sum(x.data.nbytes for x in open_checkpoint(folder).tensors.values())
    assert plain.weights == matrices  # of a folder in float32
    assert plain.per_token == lm.runner.model.spec("bf16").bytes_per_token == 2 * 2 * 2 * 12 * 2
    assert (plain.tokens, plain.context, plain.drafter) == (64, 2048, 0)
    assert plain.available == ENOUGH
    assert found(folder, kv="f32").per_token == 2 * plain.per_token
    assert found(folder, context=500).tokens == 500
    assert found(folder, context=500, cache_tokens=3000).tokens == 3000
    assert found(folder, context=500).total - plain.total == (500 - 64) * plain.per_token


def test_a_model_that_is_rounded_while_loading_needs_what_its_formats_take(tmp_path: Path) -> None:
    native = pytest.importorskip("outpace.ops.native")
    checkpoint = open_checkpoint(make_folder(tmp_path, hidden_size=64, intermediate_size=96))
    ops = native.NativeOps(threads=1)
    for format in ("q4_0", "q4_k"):
        tensors = Rounded(checkpoint, format, ops)
        packed = [ops.pack(x).num_bytes for x in tensors.values() if len(x.shape) > 1]
        vectors = sum(4 * x.shape[0] for x in tensors.values() if len(x.shape) == 1)
        assert needs(checkpoint, ops, kv="bf16", rounded=tensors).weights == sum(packed) + vectors
        assert needs(checkpoint, ops, kv="bf16").weights > 3 * sum(packed)


def test_no_more_is_available_than_is_free(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outpace.api.preflight.available_bytes", lambda: 12345)
    assert found(folder).available == 12345


def test_a_model_is_refused_before_it_is_loaded_with_the_numbers_and_what_fits(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outpace.models.build", None)  # nothing is built
    room = found(folder).total + 936 * found(folder).per_token
    with pytest.raises(
        UsageError,
        match=r"tiny: takes .* \(weights .* drafter 0 B, keys and values of 1,001 tokens 192 kB\), .* of memory are "
        r"free: 1,000 tokens fit \(context=\.\.\., cache_tokens=\.\.\.\), or more of them with kv='int8'",
    ):
        outpace.load(folder, ops=limited(room), cache_tokens=1001)
    with pytest.raises(
        UsageError, match=r"weights of at most 9\.5 kB fit: take a smaller model, or this one in a format"
    ):
        outpace.load(folder, ops=limited(10_000))


def test_what_just_fits_is_loaded(folder: Path) -> None:
    room = found(folder, context=100).total
    assert outpace.load(folder, ops=limited(room), context=100).generate("the", max_new_tokens=2).tokens
    with pytest.raises(UsageError, match="99 tokens fit"):
        outpace.load(folder, ops=limited(room - 1), context=100)


def test_a_drafter_counts(folder: Path) -> None:
    base = found(folder, context=100)
    assert replace(base, drafter=1000).total - base.total == 1050
    with pytest.raises(UsageError, match=r"drafter 1\.0 kB"):
        check_room(replace(base, drafter=1000, available=base.total), folder, "int8")


def test_what_a_model_takes_is_told_in_words_and_numbers(folder: Path) -> None:
    told = inspect_model(str(folder), limited(ENOUGH))
    assert told == found(folder)
    weights, cache, free = told.lines()
    assert weights.startswith("weights: ")
    assert "192 B a token, 393 kB for all its 2,048 positions" in cache
    assert free == f"free here: 1.0 GB, room for {told.fitting_tokens:,} tokens beside the weights"
    assert told.as_dict()["total"] == told.total
