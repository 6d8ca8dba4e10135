"""A model that was packed before is mapped: the same bytes, and the same text; any other file is left alone."""

from __future__ import annotations

import errno
import functools
import os
import time
from pathlib import Path
from typing import Any

import pytest

import outpace
from outpace.api import language_model, pack_cache
from outpace.api.pack_cache import PackedModel, packed_model
from outpace.models import build, open_checkpoint
from outpace.models.checkpoint import Checkpoint
from outpace.ops.reference import ReferenceOps
from tests.folder import make_folder

native = pytest.importorskip("outpace.ops.native")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return open_checkpoint(make_folder(tmp_path / "model"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "packed"


def opened(checkpoint: Checkpoint, folder: Path, quantize: str | None = None, threads: int = 2) -> PackedModel:
    found = packed_model(checkpoint, native.NativeOps(threads=threads), quantize, folder=folder, minimum=0)
    assert found is not None
    return found


def built(checkpoint: Checkpoint, packed: PackedModel) -> dict[str, bytes]:
    """Build the network, wait for its file, and return the bytes of every matrix."""
    handles: dict[str, Any] = {}

    class Seen:
        def take(self, name: str, shape: tuple[int, ...], pack: Any) -> Any:
            handles[name] = packed.take(name, shape, pack)
            return handles[name]

    build(checkpoint.config, checkpoint.tensors, packed.ops, packed=Seen())
    if (thread := packed.save()) is not None:
        thread.join()
    return {name: handle.tiles for name, handle in handles.items()}


def test_a_second_load_maps_what_the_first_one_packed(checkpoint: Checkpoint, folder: Path) -> None:
    first = opened(checkpoint, folder)
    assert not first.is_found
    expected = built(checkpoint, first)
    assert len(expected) > 5
    second = opened(checkpoint, folder)
    assert second.is_found

    def pack() -> Any:
        raise AssertionError("packed again")

    for name, tiles in expected.items():
        assert second.take(name, checkpoint.tensors[name].shape, pack).tiles == tiles
    assert second.save() is None
    assert [path.name for path in folder.iterdir()] == [first.path.name]


def test_texts_are_the_same(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_folder(tmp_path / "model")
    made: list[PackedModel] = []

    def remembered(*arguments: Any) -> PackedModel | None:
        found = packed_model(*arguments, folder=folder, minimum=0)
        assert found is not None
        made.append(found)
        return found

    plain = outpace.load(model, ops="native", pack_cache=False).generate("the cat", max_new_tokens=40).tokens
    monkeypatch.setattr(language_model, "packed_model", remembered)
    for quantize in (None, "q8_0"):
        texts = []
        for _ in range(2):
            lm = outpace.load(model, ops="native", quantize=quantize)
            texts.append(lm.generate("the cat", max_new_tokens=40).tokens)
            wait_for(folder, len(made) // 2 + len(made) % 2)
        assert texts[0] == texts[1]
        assert quantize is not None or texts[0] == plain
    assert [found.is_found for found in made] == [False, True, False, True]
    outpace.load(model, ops="native", pack_cache=False)
    assert len(made) == 4


def wait_for(folder: Path, count: int) -> None:
    """Wait for the threads that write: Python knows them."""
    import threading

    for thread in threading.enumerate():
        if thread.name == "outpace packed model":
            thread.join()
    assert len(list(folder.iterdir())) == count


def test_a_model_that_was_written_again_is_packed_again(checkpoint: Checkpoint, folder: Path) -> None:
    built(checkpoint, opened(checkpoint, folder))
    weights = checkpoint.path / "model.safetensors"
    later = time.time_ns() + 10**9
    os.utime(weights, ns=(later, later))
    assert not opened(checkpoint, folder).is_found
    assert not opened(checkpoint, folder, "q8_0").is_found


def test_what_another_build_packed_is_packed_again(
    checkpoint: Checkpoint, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(checkpoint, opened(checkpoint, folder))
    assert opened(checkpoint, folder, threads=1).is_found
    ops = native.NativeOps(threads=1)
    monkeypatch.setattr(ops, "isa", "baseline")
    found = packed_model(checkpoint, ops, None, folder=folder, minimum=0)
    assert found is not None
    assert not found.is_found
    monkeypatch.setattr(pack_cache, "VERSION", "0.0.0")
    assert not opened(checkpoint, folder).is_found


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-64],
        lambda content: content + bytes(64),
        lambda content: content[:12],
        lambda content: b"",
        lambda content: b"x" + content[1:],
        lambda content: content[:8] + b"\xff" * 8 + content[16:],
        lambda content: content.replace(b'"F32"', b'"F3X"'),
        lambda content: content.replace(b'"key"', b'"kay"'),
        lambda content: content.replace(b'"version"', b'"Version"'),
    ],
)
def test_a_damaged_file_is_packed_again_and_replaced(checkpoint: Checkpoint, folder: Path, damage: Any) -> None:
    first = opened(checkpoint, folder)
    expected = built(checkpoint, first)
    whole = first.path.read_bytes()
    damaged = damage(whole)
    assert damaged != whole
    first.path.write_bytes(damaged)
    assert built(checkpoint, opened(checkpoint, folder)) == expected
    built(checkpoint, opened(checkpoint, folder))
    assert first.path.read_bytes() == whole


def test_a_file_never_stands_there_half_written(
    checkpoint: Checkpoint, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        assert not list(folder.glob("[!.]*"))
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(pack_cache.os, "fsync", full)
    built(checkpoint, opened(checkpoint, folder))
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_stops_nobody(checkpoint: Checkpoint, folder: Path) -> None:
    folder.write_text("a file")
    assert built(checkpoint, opened(checkpoint, folder))
    assert folder.read_text() == "a file"


def test_the_files_used_longest_ago_go_where_all_would_take_more_than_the_limit(
    checkpoint: Checkpoint, folder: Path
) -> None:
    first = opened(checkpoint, folder)
    built(checkpoint, first)
    size = first.path.stat().st_size
    others = [folder / f"{name}.packed" for name in ("used", "unused")]
    for age, path in zip((50, 100), others, strict=True):
        path.write_bytes(bytes(size))
        os.utime(path, (time.time() - age,) * 2)
    os.utime(first.path, (time.time() - 200,) * 2)
    opened(checkpoint, folder)  # is used now
    second = opened(checkpoint, folder, "q8_0")
    second.limit = 3 * size + size // 2
    built(checkpoint, second)
    assert {path.name for path in folder.iterdir()} == {first.path.name, second.path.name, "used.packed"}


def test_a_model_larger_than_the_limit_is_not_kept(checkpoint: Checkpoint, folder: Path) -> None:
    found = opened(checkpoint, folder)
    found.limit = 1000
    built(checkpoint, found)
    assert list(folder.iterdir()) == []


def test_a_disk_that_is_nearly_full_keeps_none(
    checkpoint: Checkpoint, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(pack_cache.shutil, "disk_usage", lambda path: used)
    built(checkpoint, opened(checkpoint, folder))
    assert list(folder.iterdir()) == []


def test_what_a_process_left_unfinished_is_deleted_after_an_hour(checkpoint: Checkpoint, folder: Path) -> None:
    folder.mkdir()
    old, young = folder / ".1.packed", folder / ".2.packed"
    for age, path in ((4000, old), (10, young)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    built(checkpoint, opened(checkpoint, folder))
    assert not old.exists()
    assert young.exists()


def test_small_models_and_other_ops_have_none(checkpoint: Checkpoint, folder: Path) -> None:
    make = functools.partial(packed_model, checkpoint, quantize=None, folder=folder)
    assert make(ops=native.NativeOps(threads=1)) is None
    assert make(ops=ReferenceOps(), minimum=0) is None
    assert make(ops=native.NativeOps(threads=1), minimum=checkpoint.num_bytes) is not None
