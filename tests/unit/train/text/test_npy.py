from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from outpace.train.text.npy import read_array, save_array


def test_an_array_comes_back_as_it_was(tmp_path: Path) -> None:
    x = np.arange(6, dtype="<u2").reshape(2, 3)
    save_array(tmp_path / "x.npy", x)
    assert np.array_equal(read_array(tmp_path / "x.npy"), x)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"], "no temporary file stays"


def archive() -> bytes:
    data = io.BytesIO()
    np.savez(data, x=np.zeros(3))
    return data.getvalue()


@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY\x01\x00", archive()])
def test_what_is_no_array_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        read_array(tmp_path / "x.npy")


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects"):
        read_array(tmp_path / "x.npy")
