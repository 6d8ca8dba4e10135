from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from outpace.errors import WeightsError
from outpace.ops.formats import dequantise
from outpace.weights.pickles import read_pickle

VALUES = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "half": torch.tensor([0.5, -2.0]).half(),
    "bf": torch.tensor([[1.5], [-3.0]]).bfloat16(),
    "d2t": torch.arange(4) * 3,
    "t2d": torch.tensor([True, False]),
    "part": torch.arange(20, dtype=torch.float32).reshape(5, 4)[1:3],
}


def saved(path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, path / "w.bin", **options)
    return path / "w.bin"


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_what_torch_saved_is_read_as_it_lies_in_the_file(protocol: int, tmp_path: Path) -> None:
    found = read_pickle(saved(tmp_path, VALUES, pickle_protocol=protocol))
    assert {name: tensor.format for name, tensor in found.items()} == {
        **{"a": "F32", "half": "F16", "bf": "BF16", "d2t": "I64", "t2d": "BOOL", "part": "F32"},
    }
    for name, tensor in found.items():
        assert tensor.shape == tuple(VALUES[name].shape)
        if tensor.format not in ("I64", "BOOL"):
            assert np.array_equal(dequantise(tensor), VALUES[name].float().numpy())
    assert found["d2t"].data.view("<i8").tolist() == [[0, 3, 6, 9]]
    assert found["t2d"].data.tolist() == [[1, 0]]


def test_a_state_dict_and_its_parameters_are_read(tmp_path: Path) -> None:
    layer = torch.nn.Linear(3, 2)
    found = read_pickle(saved(tmp_path, layer.state_dict()))
    assert np.array_equal(dequantise(found["weight"]), layer.weight.detach().numpy())
    assert set(read_pickle(saved(tmp_path, {"w": torch.nn.Parameter(torch.ones(2))}))) == {"w"}


class Runs:
    """What an attacker would send: an object whose pickle calls a function when it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def rewritten(path: Path, program: bytes) -> Path:
    """Put another data.pkl into a file that torch saved."""
    given = saved(path, {"a": torch.ones(2)})
    with zipfile.ZipFile(given) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path / "evil.bin", "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, program if name.endswith("data.pkl") else content)
    return path / "evil.bin"


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(protocol: int, tmp_path: Path) -> None:
    target = tmp_path / "made"
    program = pickle.dumps({"a": Runs(target.mkdir)}, protocol)
    with pytest.raises(WeightsError, match="nothing of it was run"):
        read_pickle(rewritten(tmp_path, program))
    assert not target.exists()
    pickle.loads(program)  # Python's own reader does run it: the test can fail
    assert target.exists()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (pickle.dumps({"a": Runs(eval, "1")}, 2), "would call __builtin__.eval"),
        (pickle.dumps({"a": Runs(torch.load, "x")}, 4), "would call torch.serialization.load"),
        (pickle.dumps({"a": 3}, 2), "'a' must be a tensor"),
        (pickle.dumps([1], 2), "no dictionary of tensors needs"),
        (pickle.dumps("a", 2), "must hold a dictionary of tensors"),
        (pickle.dumps({1: 2}, 2), "no dictionary by name"),
        (b"", "damaged"),
        (b"\x80\x02}q\x00", "damaged"),
        (b"\x80\x02h\x07.", "damaged"),  # the memo has no 7
        (b"\x80\x02r\xff\xff\xff\xff.", "damaged"),  # puts nothing at index 2^32 - 1
        (b"\x80\x02" + b"\x85" * 3 + b".", "must hold a dictionary"),
        (b"\x80\x02\x8a\xff" + b"\x01" * 10, "damaged"),
    ],
)
def test_a_malformed_program_is_an_error_that_names_the_file(program: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=rf"evil\.bin: .*{message}"):
        read_pickle(rewritten(tmp_path, program))


def test_a_program_that_grows_without_end_stays_small(tmp_path: Path) -> None:
    """Nested references are only references: nobody compares, hashes or prints what they unfold to."""
    program = b"\x80\x02)" + b"q\x00h\x00\x86" * 60 + b"}q\x01" + b"h\x00K\x01s."
    with pytest.raises(WeightsError, match="no dictionary by name"):
        read_pickle(rewritten(tmp_path, program))


def test_rows_that_do_not_follow_one_another_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"rows do not follow one another \(strides \(1, 3\)\)"):
        read_pickle(saved(tmp_path, {"a": torch.ones(2, 3).T}))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_a_file_that_is_cut_short_is_an_error(share: float, tmp_path: Path) -> None:
    whole = saved(tmp_path, VALUES).read_bytes()
    (tmp_path / "cut.bin").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(WeightsError, match=r"cut\.bin: is not what torch\.save writes"):
        read_pickle(tmp_path / "cut.bin")


def test_bytes_that_do_not_fit_their_shape_are_an_error(tmp_path: Path) -> None:
    given = saved(tmp_path, {"a": torch.ones(300)})
    with zipfile.ZipFile(given) as archive:
        program = archive.read("w/data.pkl")
    with pytest.raises(WeightsError, match=r"tensor 'a': shape .* does not fit its bytes"):
        read_pickle(rewritten(tmp_path, program))


def test_compressed_bytes_and_another_byte_order_are_refused(tmp_path: Path) -> None:
    given = saved(tmp_path, {"a": torch.ones(2)})
    for changed, method, message in (
        ("data/0", zipfile.ZIP_DEFLATED, "uncompressed"),
        ("byteorder", zipfile.ZIP_STORED, "little-endian"),
    ):
        buffer = io.BytesIO()
        with zipfile.ZipFile(given) as archive, zipfile.ZipFile(buffer, "w") as out:
            for info in archive.infolist():
                content = archive.read(info)
                is_changed = info.filename.endswith(changed)
                content = b"big" if is_changed and changed == "byteorder" else content
                out.writestr(info.filename, content, method if is_changed else zipfile.ZIP_STORED)
        (tmp_path / "odd.bin").write_bytes(buffer.getvalue())
        with pytest.raises(WeightsError, match=message):
            read_pickle(tmp_path / "odd.bin")


def test_what_is_no_zip_archive_or_older_than_zip_is_refused(tmp_path: Path) -> None:
    old = saved(tmp_path, {"a": torch.ones(2)}, _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match=r"is not what torch\.save writes since PyTorch 1\.6"):
        read_pickle(old)
