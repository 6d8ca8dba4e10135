from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from outpace.errors import WeightsError
from outpace.weights.safetensors import read_folder, read_safetensors
from tests.unit.weights.tiny import write_safetensors


def raw(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def test_what_the_library_writes_is_read_as_rows_of_the_file(tmp_path: Path) -> None:
    wide = np.arange(12, dtype=np.float32).reshape(3, 4)
    half = np.arange(5, dtype=np.float16)
    save_file({"wide": wide, "half": half}, tmp_path / "a.safetensors", metadata={"format": "pt"})
    tensors = read_safetensors(tmp_path / "a.safetensors")
    assert tensors.keys() == {"wide", "half"}
    assert (tensors["wide"].format, tensors["wide"].shape, tensors["wide"].data.shape) == ("F32", (3, 4), (3, 16))
    assert (tensors["half"].format, tensors["half"].shape, tensors["half"].data.shape) == ("F16", (5,), (1, 10))
    assert tensors["wide"].data.tobytes() == wide.tobytes()
    assert tensors["half"].data.tobytes() == half.tobytes()
    assert not tensors["wide"].data.flags.writeable


def test_integers_and_booleans_are_read_where_they_are_asked_for(tmp_path: Path) -> None:
    values = {"d2t": np.array([3, -1, 5]), "t2d": np.array([True, False]), "few": np.array([7], np.int32)}
    save_file(values, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"dtype is '(I64|BOOL|I32)', supported are F32, F16, BF16$"):
        read_safetensors(tmp_path / "model.safetensors")
    found = read_folder(tmp_path, indices=True)
    assert {name: (x.format, x.shape) for name, x in found.items()} == {
        **{"d2t": ("I64", (3,)), "t2d": ("BOOL", (2,)), "few": ("I32", (1,))},
    }
    assert found["d2t"].data.view("<i8").tolist() == [[3, -1, 5]]
    assert found["t2d"].data.tolist() == [[1, 0]]


def test_bfloat16_is_read_as_it_is_stored(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "a.safetensors", {"b": ("BF16", (2, 2), bytes(range(8)))})
    tensor = read_safetensors(tmp_path / "a.safetensors")["b"]
    assert (tensor.format, tensor.data.tolist()) == ("BF16", [[0, 1, 2, 3], [4, 5, 6, 7]])


MALFORMED = {
    "an empty file": (b"", "empty"),
    "a short length": (b"\1\0", "header length takes 8 bytes"),
    "a length past the end": (raw({}, length=100), "header length is 100"),
    "a huge length": (raw({}, length=(1 << 64) - 1), "header length"),
    "no JSON": (raw(b"{nothing"), "not valid JSON"),
    "wrong UTF-8": (raw(b'{"\xff": 1}'), "not valid JSON"),
    "deep JSON": (raw(b"[" * 4000), "not valid JSON"),
    "deep and dense JSON": (raw(b"[" * 200_000), "not a description of a model"),
    "a huge number": (raw(b'{"w": ' + b"9" * 100_000 + b"}"), "not valid JSON"),
    "a list": (raw([]), "must be a JSON object"),
    "a name twice": (raw(b'{"w": 1, "w": 2}'), "'w' occurs twice"),
    "no object": (raw({"w": 3}), "tensor 'w': must be an object"),
    "no dtype": (raw({"w": {"shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8), "dtype is None"),
    "a dtype that is not supported": (raw(one("I64", [1]), b"\0" * 8), "dtype is 'I64', supported are F32, F16, BF16"),
    "a dtype list": (raw(one(["F32"]), b"\0" * 8), "dtype"),
    "no shape": (raw(one(shape=None), b"\0" * 8), "shape must be a list"),
    "a scalar": (raw(one(shape=[], offsets=[0, 4]), b"\0" * 8), "shape must be a list"),
    "shape 0": (raw(one(shape=[0], offsets=[0, 0]), b"\0" * 8), "shape must be a list"),
    "a negative shape": (raw(one(shape=[-2, -1]), b"\0" * 8), "shape must be a list"),
    "shape true": (raw(one(shape=[2, True]), b"\0" * 8), "shape must be a list"),
    "many dimensions": (raw(one(shape=[1] * 1000 + [2]), b"\0" * 8), "1001 dimensions"),
    "a shape that overflows": (raw(one(shape=[1 << 32, 1 << 32]), b"\0" * 8), "data_offsets span 8 bytes"),
    "no offsets": (raw({"w": {"dtype": "F32", "shape": [2]}}, b"\0" * 8), "data_offsets must be two"),
    "offsets as text": (raw(one(offsets="08"), b"\0" * 8), "data_offsets must be two"),
    "negative offsets": (raw(one(offsets=[-8, 0]), b"\0" * 8), "data_offsets must be two"),
    "offsets with a fraction": (raw(one(offsets=[0.0, 8.0]), b"\0" * 8), "data_offsets must be two"),
    "infinite offsets": (raw(one(offsets=[float("inf"), 8]), b"\0" * 8), "data_offsets must be two"),
    "offsets that do not fit the shape": (raw(one(offsets=[0, 4]), b"\0" * 8), "span 4 bytes, its shape takes 8"),
    "reversed offsets": (raw(one(offsets=[8, 0]), b"\0" * 8), "span -8 bytes"),
    "offsets past the end": (raw(one(offsets=[4, 12]), b"\0" * 8), r"must be in \[0, 8\]"),
    "overlapping tensors": (raw(one() | {"x": one(offsets=[4, 12])["w"]}, b"\0" * 16), "overlaps another"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_header_is_an_error_that_names_the_field(tmp_path: Path, case: str) -> None:
    content, message = MALFORMED[case]
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        read_safetensors(tmp_path / "a.safetensors")


CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=300, deadline=None, suppress_health_check=CHECKS)
@given(st.data())
def test_any_bytes_changed_give_tensors_or_an_error(tmp_path: Path, data: st.DataObject) -> None:
    header = one() | {"second": one("BF16", [2, 2], [8, 16])["w"], "__metadata__": {"format": "pt"}}
    content = bytearray(raw(header, b"\1" * 16))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 17))] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.safetensors"
    path.unlink(missing_ok=True)
    path.write_bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))])
    try:
        tensors = read_safetensors(path)
    except WeightsError:
        return
    assert all(tensor.data.max() == 1 for tensor in tensors.values())


# -- shards --------------------------------------------------------------------------------------


def shards(folder: Path, weight_map: Any) -> Path:
    write_safetensors(folder / "one.safetensors", {"a": ("F32", (1,), b"aaaa")})
    write_safetensors(folder / "two.safetensors", {"b": ("F32", (1,), b"bbbb"), "c": ("F32", (1,), b"cccc")})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    folder = shards(tmp_path, {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"})
    assert {name: tensor.data.tobytes() for name, tensor in read_folder(folder).items()} == {
        "a": b"aaaa",
        "b": b"bbbb",
        "c": b"cccc",
    }


@pytest.mark.parametrize(
    "name",
    [
        *("../one.safetensors", "/etc/one.safetensors", "sub/one.safetensors", "..\\one.safetensors"),
        *("C:one.safetensors", "one.bin", "", 3, ["one.safetensors"], "one\0.safetensors"),
    ],
)
def test_a_shard_outside_of_its_folder_is_refused(tmp_path: Path, name: Any) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    write_safetensors(tmp_path / "one.safetensors", {"a": ("F32", (1,), b"aaaa")})
    with pytest.raises(WeightsError, match="weight_map must name"):
        read_folder(shards(inner, {"a": name}))


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (None, "weight_map must be an object"),
        ({}, "weight_map must be an object"),
        (["a"], "weight_map must be an object"),
        ({"a": "three.safetensors"}, "three.safetensors: cannot be read: No such file"),
        ({"a": "two.safetensors"}, "tensor 'a' is not in two.safetensors"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_an_error(tmp_path: Path, weight_map: Any, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        read_folder(shards(tmp_path, weight_map))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_pickles_are_refused_with_the_reason_and_the_cure(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04")
    with pytest.raises(WeightsError, match=rf"pickles \({name}\), which can run any code.*save_pretrained"):
        read_folder(tmp_path)


def test_a_folder_without_weights_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds no weights"):
        read_folder(tmp_path)
