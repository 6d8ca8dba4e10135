from __future__ import annotations

from array import array
from pathlib import Path

import gguf
import numpy as np
import pytest

from outpace.errors import UsageError
from outpace.types import RawTensor
from outpace.weights.gguf import read_gguf
from outpace.weights.gguf_writer import Planned, write_gguf
from tests.tiny import raw_tensor

METADATA = {
    "general.architecture": "llama",
    "a.whole": 7,
    "a.large": 1 << 40,
    "a.negative": -3,
    "a.far.negative": -(1 << 40),
    "a.real": 0.5,
    "a.flag": True,
    "a.words": ["", "Grüße", "日本"],
    "a.flags": [True, False],
    "a.numbers": array("i", [1, -2, 3]),
    "a.scores": array("f", [0.25, -1.5]),
}
TENSORS = {
    "v": raw_tensor("v", np.arange(5, dtype=np.float32)),
    "w": raw_tensor("w", np.arange(192, dtype=np.float32).reshape(3, 64), "Q8_0"),
    "e": raw_tensor("e", np.ones((2, 3, 32), np.float32), "F16"),
}


def write(path: Path, content: dict[str, RawTensor] = TENSORS, **how: object) -> int:
    planned = [Planned(name, t.format, t.shape) for name, t in content.items()]
    tensors = list(content.values())
    return write_gguf(path, METADATA, planned, lambda i: tensors[i], **how)  # type: ignore[arg-type]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    assert write(path) == path.stat().st_size
    found = read_gguf(path)
    assert found.metadata == METADATA
    assert list(found.tensors) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert (found.tensors[name].format, found.tensors[name].shape) == (tensor.format, tensor.shape)
        assert found.tensors[name].data.tobytes() == tensor.data.tobytes()


def test_the_gguf_package_reads_it_too(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    assert [t.name for t in reader.tensors] == list(TENSORS)
    assert reader.tensors[1].data.tobytes() == TENSORS["w"].data.tobytes()
    assert reader.get_field("a.words").contents() == METADATA["a.words"]
    assert reader.get_field("a.large").contents() == 1 << 40


def test_progress_counts_bytes_of_tensors(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write(tmp_path / "a.gguf", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(20, 20 + 204 + 384), (20 + 204, 608), (608, 608)]


def test_a_failure_leaves_the_earlier_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"earlier")

    def fail(i: int) -> RawTensor:
        raise RuntimeError("no tensor")

    with pytest.raises(RuntimeError, match="no tensor"):
        write_gguf(path, METADATA, [Planned("v", "F32", (5,))], fail)
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone/a\.gguf: cannot be written \(No such file"):
        write(tmp_path / "gone" / "a.gguf")
