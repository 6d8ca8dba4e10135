"""Arrays that are views of a mapped file: whose they are, and how their pages are let go."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray


def mapped_file(data: NDArray[np.uint8]) -> mmap.mmap | None:
    """Return the file's mapping that an array is a view of; None for memory of its own, or that may be written."""
    owner: Any = data
    while isinstance(owner, np.ndarray | memoryview):
        owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
    if not isinstance(owner, mmap.mmap):
        return None
    with memoryview(owner) as view:
        return owner if view.readonly else None


def release(data: NDArray[np.uint8]) -> None:
    """Take the pages of a contiguous view of a mapped file out of memory: whoever reads them gets them from the file.

    Other arrays are left alone.
    """
    owner = mapped_file(data)
    if owner is None or not hasattr(mmap, "MADV_DONTNEED") or not data.flags.c_contiguous:
        return
    start = data.ctypes.data - np.frombuffer(owner, np.uint8).ctypes.data
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (start + data.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if length > 0:
        owner.madvise(mmap.MADV_DONTNEED, first, length)
