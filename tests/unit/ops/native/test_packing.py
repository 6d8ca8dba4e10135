"""Matrices of mapped files, and of other read-only arrays, are packed while Python goes on.

Nobody sees one that is not packed yet.
"""

from __future__ import annotations

import gc
import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from outpace.errors import UsageError
from outpace.ops.formats import BLOCKS
from outpace.types import RawTensor

native = pytest.importorskip("outpace.ops.native")
OUT, IN = 1000, 2048

PACKS = """
import mmap, os, sys
import numpy as np
from outpace.ops.native import NativeOps
from outpace.types import RawTensor

def mapped(path, rows):
    with open(path, "rb") as file:
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return RawTensor("w", np.frombuffer(whole, np.uint8).reshape(rows, -1), "F32", (rows, 2048))

ops = NativeOps(threads=2)
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packing") / "numbers"
    numbers = np.random.default_rng(3).standard_normal(OUT * IN).astype("<f4")
    path.write_bytes(numbers.tobytes())
    return path


def mapped(path: Path, format: str = "F32") -> RawTensor:
    """Return a matrix [OUT, IN] of a format, whatever numbers the file's bytes then are."""
    with path.open("rb") as file:
        whole = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    width = IN // BLOCKS[format].size * BLOCKS[format].bytes
    return RawTensor("w", whole[: OUT * width].reshape(OUT, width), format, (OUT, IN))


def copied(tensor: RawTensor) -> RawTensor:
    return RawTensor(tensor.name, tensor.data.copy(), tensor.format, tensor.shape)


def references(tensor: RawTensor) -> int:
    return sys.getrefcount(tensor.data)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_what_is_packed_meanwhile_has_the_bytes_of_what_is_packed_at_once(file: Path, threads: int) -> None:
    ops = native.NativeOps(threads=threads)
    tensors = [mapped(file, format) for format in BLOCKS for _ in range(3)]
    handles = [ops.pack(tensor) for tensor in tensors]
    for handle, tensor in zip(handles, tensors, strict=True):
        assert handle.tiles == ops.pack(copied(tensor)).tiles, tensor.format


def test_an_array_that_may_be_written_is_packed_at_once_and_one_that_may_not_be_meanwhile(file: Path) -> None:
    ops = native.NativeOps(threads=1)
    expected = ops.pack(copied(mapped(file))).tiles
    own = copied(mapped(file))
    at_once, before = ops.pack(own), references(own)
    own.data.flags.writeable = False
    meanwhile = [ops.pack(own) for _ in range(8)]  # 8 MB each: they are waited for in between
    assert references(own) > before
    assert [handle.tiles == expected for handle in (at_once, *meanwhile)] == [True] * 9
    own.data.flags.writeable = True
    written = ops.pack(own)
    own.data[:] = 0
    assert written.tiles == expected


@pytest.mark.parametrize("threads", [1, 2])
def test_a_product_waits_for_its_matrix(file: Path, threads: int) -> None:
    ops, other = native.NativeOps(threads=threads), native.NativeOps(threads=1)
    x = other.array(np.ones((1, IN), np.float32))

    def product(tensor: RawTensor) -> NDArray[np.float32]:
        return other.numpy(other.linear(x, ops.pack(tensor)))  # the ops of one compute with matrices of the other

    assert (product(mapped(file)) == product(copied(mapped(file)))).all()


def test_the_bytes_may_be_dropped_as_soon_as_packing_has_begun(file: Path) -> None:
    ops = native.NativeOps(threads=1)  # nothing is packed before somebody waits
    expected = ops.pack(copied(mapped(file))).tiles
    handle = ops.pack(mapped(file))
    gc.collect()
    ops.synchronize()
    assert handle.tiles == expected


def test_the_bytes_are_given_back_when_all_is_packed(file: Path) -> None:
    ops = native.NativeOps(threads=2)
    tensor = mapped(file)
    before = references(tensor)
    handle = ops.pack(tensor)
    meanwhile = references(tensor)
    ops.synchronize()
    assert meanwhile > before
    assert references(tensor) == before
    del handle


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("threads", [1, 3])
def test_a_forked_child_has_what_its_parent_began_to_pack(file: Path, threads: int) -> None:
    ops = native.NativeOps(threads=threads)
    expected = ops.pack(copied(mapped(file))).tiles
    handle = ops.pack(mapped(file))
    child = os.fork()
    if child == 0:  # no assertion may leave the child
        os._exit(0 if handle.tiles == expected and ops.pack(mapped(file)).tiles == expected else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert handle.tiles == expected


@pytest.mark.parametrize("end", ["sys.exit(5)", "os._exit(5)", "del handles; sys.exit(5)"])
def test_a_process_may_end_while_it_packs(file: Path, end: str) -> None:
    packs = f"handles = [ops.pack(mapped({str(file)!r}, {OUT})) for _ in range(20)]"
    script = f"import sys; sys.path[:0] = {sys.path!r}\n{PACKS}{packs}; {end}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (5, "")


def test_tiles_of_a_file_are_a_matrix(file: Path, tmp_path: Path) -> None:
    ops = native.NativeOps(threads=2)
    weight = ops.pack(copied(mapped(file)))
    (tmp_path / "packed").write_bytes(bytes(64) + ops.tiles(weight).tobytes())
    found = ops.packed_file(tmp_path / "packed").matrix(64, "F32", OUT, IN)
    x = ops.array(np.ones((3, IN), np.float32))
    assert (ops.numpy(ops.linear(x, found)) == ops.numpy(ops.linear(x, weight))).all()
    assert (found.shape, found.format, found.tiles) == (weight.shape, "F32", weight.tiles)


@pytest.mark.parametrize(("offset", "out"), [(-64, OUT), (32, OUT), (128, OUT), (1 << 40, OUT), (0, OUT + 16)])
def test_tiles_outside_their_file_are_refused(file: Path, tmp_path: Path, offset: int, out: int) -> None:
    ops = native.NativeOps(threads=2)
    (tmp_path / "packed").write_bytes(bytes(64) + ops.tiles(ops.pack(mapped(file))).tobytes())
    with pytest.raises(UsageError, match="cannot begin at"):
        ops.packed_file(tmp_path / "packed").matrix(offset, "F32", out, IN)


def test_what_cannot_be_mapped_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for path in (tmp_path / "nowhere", tmp_path / "empty", tmp_path):
        with pytest.raises(UsageError, match="cannot be mapped"):
            native.NativeOps(threads=1).packed_file(path)
