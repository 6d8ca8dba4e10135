from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from outpace.types.mapped import mapped_file, release
from outpace.weights.files import map_file

SIZE = 64 * mmap.PAGESIZE


@pytest.fixture
def view(tmp_path: Path) -> NDArray[np.uint8]:
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(0).integers(0, 256, SIZE, np.uint8).tobytes())
    return np.frombuffer(map_file(path), np.uint8)


def resident(data: NDArray[np.uint8]) -> int:
    """Return the kilobytes of the mapping around an array that are in memory."""
    address, found = data.ctypes.data, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            first, last = (int(part, 16) for part in head.split("-"))
            found = first <= address < last
        elif found and line.startswith("Rss:"):
            return int(line.split()[1])
    raise AssertionError("no such mapping")


def test_views_of_a_mapped_file_are_told_from_memory_of_their_own(view: NDArray[np.uint8]) -> None:
    whole = mapped_file(view)
    assert isinstance(whole, mmap.mmap)
    assert mapped_file(view[100:300].reshape(10, 20)[2:]) is whole
    assert mapped_file(view.copy()) is None
    assert mapped_file(view[np.array([1, 2])]) is None
    assert mapped_file(np.zeros(4, np.uint8)) is None
    assert mapped_file(np.frombuffer(b"abcd", np.uint8)) is None


def test_a_mapping_that_may_be_written_is_never_let_go() -> None:
    own = np.frombuffer(mmap.mmap(-1, SIZE), np.uint8)
    own[:] = 7
    release(own)
    assert mapped_file(own) is None
    assert (own == 7).all()


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="asks Linux for what is in memory")
def test_released_pages_leave_memory_and_come_back_from_the_file(view: NDArray[np.uint8]) -> None:
    before = view.copy()
    assert resident(view) == SIZE // 1024
    part = view[mmap.PAGESIZE + 5 : SIZE // 2]
    release(part)
    left = resident(view)
    assert left == (SIZE - (SIZE // 2 - 2 * mmap.PAGESIZE)) // 1024
    assert (view == before).all()


def test_parts_of_a_page_and_views_with_gaps_are_left_alone(view: NDArray[np.uint8]) -> None:
    before = view.copy()
    for part in (view[3:50], view[::2], view[: mmap.PAGESIZE - 1]):
        release(part)
    assert (view == before).all()
