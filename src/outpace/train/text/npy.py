"""NumPy's own file format, written whole or not at all, and read without being believed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outpace.measure.output_file import save


def save_array(path: Path, x: NDArray[Any]) -> None:
    """Write an array in one step."""
    data = io.BytesIO()
    np.save(data, x, allow_pickle=False)
    save(path, data.getvalue())


def read_array(path: Path) -> NDArray[Any]:
    """Return an array that stays on disk until it is used. Raises ValueError for what is none, OSError."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (EOFError, SyntaxError) as error:
        raise ValueError(f"{path.name} is no array of NumPy's: {error}") from error
    if not isinstance(found, np.ndarray):
        raise ValueError(f"{path.name} is no single array of NumPy's")
    return found
