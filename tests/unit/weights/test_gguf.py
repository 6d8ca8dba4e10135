from __future__ import annotations

import shutil
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outpace.errors import WeightsError
from outpace.models import open_checkpoint
from outpace.weights.gguf import part_names, read_gguf
from tests.unit.weights.tiny import CONFIG, array, entry, gguf_bytes, info, tensors_of, text, u32, write_gguf

ROW = struct.pack("<4f", 1, 2, 3, 4)
ONE = [info("w", [4, 2], 0, 0)]  # one tensor [2, 4] F32, 32 bytes
HUGE = 1 << 62


def test_integers_are_read_where_they_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(gguf_bytes([], [info("d2t", [4], 27, 0)], struct.pack("<4q", 3, -1, 5, 0)))
    with pytest.raises(WeightsError, match=r"tensor 'd2t' has type I64, supported are"):
        read_gguf(tmp_path / "x.gguf")
    found = read_gguf(tmp_path / "x.gguf", indices=True).tensors["d2t"]
    assert (found.format, found.shape, found.data.view("<i8").tolist()) == ("I64", (4,), [[3, -1, 5, 0]])


def test_metadata_of_every_type_is_read(tmp_path: Path) -> None:
    entries = [
        *(
            entry(f"int{kind}", kind, struct.pack("<" + code, -5))
            for kind, code in {1: "b", 3: "h", 5: "i", 11: "q"}.items()
        ),
        *(
            entry(f"uint{kind}", kind, struct.pack("<" + code, 5))
            for kind, code in {0: "B", 2: "H", 4: "I", 10: "Q"}.items()
        ),
        entry("f32", 6, struct.pack("<f", 0.5)),
        entry("f64", 12, struct.pack("<d", 0.1)),
        entry("bool", 7, b"\1"),
        entry("string", 8, text("grün")),
        entry("strings", 9, array(8, 3, text("a") + text("") + text("ü"))),
        entry("ints", 9, array(5, 3, struct.pack("<3i", 1, -2, 3))),
        entry("bools", 9, array(7, 2, b"\0\1")),
        entry("none", 9, array(8, 0, b"")),
    ]
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_bytes(entries))
    metadata = read_gguf(path).metadata
    assert [metadata[f"int{kind}"] for kind in (1, 3, 5, 11)] == [-5] * 4
    assert [metadata[f"uint{kind}"] for kind in (0, 2, 4, 10)] == [5] * 4
    assert (metadata["f32"], metadata["f64"], metadata["bool"], metadata["string"]) == (0.5, 0.1, True, "grün")
    assert metadata["strings"] == ["a", "", "ü"]
    assert (list(metadata["ints"]), metadata["bools"], metadata["none"]) == ([1, -2, 3], [False, True], [])


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [32, 64])
def test_tensors_are_views_of_the_file_in_rows(tmp_path: Path, version: int, alignment: int) -> None:
    infos = [info("v", [3], 0, alignment), *ONE]  # the order of infos need not be that of the data
    data = (ROW + ROW).ljust(alignment, b"\0") + ROW[:12]
    path = tmp_path / "a.gguf"
    path.write_bytes(
        gguf_bytes([u32("general.alignment", alignment)], infos, data, version=version, alignment=alignment)
    )
    tensors = read_gguf(path).tensors
    assert tensors["w"].shape == (2, 4)
    assert tensors["w"].data.shape == (2, 16)
    assert tensors["v"].shape == (3,)
    assert tensors["v"].data.tobytes() == ROW[:12]
    assert not tensors["w"].data.flags.owndata
    assert not tensors["w"].data.flags.writeable


MALFORMED = {
    "an empty file": (b"", "empty"),
    "a short magic": (b"GG", "magic"),
    "another magic": (gguf_bytes(magic=b"GGML"), "magic"),
    "version 1": (gguf_bytes(version=1), "version is 1"),
    "version 4": (gguf_bytes(version=4), "version is 4"),
    "big-endian": (gguf_bytes(version=3 << 24), "big-endian"),
    "a huge tensor count": (gguf_bytes(num_tensors=HUGE), "number of tensors"),
    "a huge metadata count": (gguf_bytes(num_entries=HUGE), "number of metadata entries"),
    "a tensor count above what is there": (gguf_bytes([], ONE, b"\0" * 96, num_tensors=3), "dimensions|overlap"),
    "a metadata count above what is there": (
        gguf_bytes([u32("a", 1)], num_entries=2),
        "number of metadata entries|key",
    ),
    "a huge key": (gguf_bytes([struct.pack("<Q", HUGE) + b"k" * 40]), "key of metadata entry 0"),
    "a key that is not UTF-8": (gguf_bytes([text(b"\xff\xfe") + struct.pack("<II", 4, 1)]), "UTF-8"),
    "a key that occurs twice": (gguf_bytes([u32("a", 1), u32("a", 2)]), "'a' occurs twice"),
    "an unknown metadata type": (gguf_bytes([entry("a", 13, b"\0" * 8)]), "unknown type 13"),
    "a cut number": (gguf_bytes([entry("a", 10, b"\0" * 4)]), "metadata 'a' takes 8 bytes"),
    "a huge string": (gguf_bytes([entry("a", 8, struct.pack("<Q", HUGE))]), "metadata 'a'"),
    "the hugest string": (gguf_bytes([entry("a", 8, b"\xff" * 8)]), "metadata 'a'"),
    "a huge string in an array": (gguf_bytes([entry("a", 9, array(8, 1, struct.pack("<Q", HUGE)))]), "metadata 'a'"),
    "a cut string in an array": (gguf_bytes([entry("a", 9, array(8, 2, text("a" * 20)))]), "metadata 'a'"),
    "a huge string array": (gguf_bytes([entry("a", 9, array(8, HUGE, b"\0" * 80))]), "metadata 'a' length"),
    "a huge number array": (gguf_bytes([entry("a", 9, array(0, HUGE, b"\0" * 80))]), "metadata 'a' length"),
    "an array longer than the file": (gguf_bytes([entry("a", 9, array(4, 21, b"\0" * 80))]), "metadata 'a' length"),
    "an array of arrays": (gguf_bytes([entry("a", 9, array(9, 1, array(4, 1, b"\0" * 4)))]), "array of arrays"),
    "an array of unknown type": (gguf_bytes([entry("a", 9, array(77, 1, b"\0" * 8))]), "unknown type 77"),
    "a string that is not UTF-8": (
        gguf_bytes([entry("a", 9, array(8, 2, text("a") + text(b"\xc3")))]),
        "string 1 is not UTF-8",
    ),
    "alignment 0": (gguf_bytes([u32("general.alignment", 0)]), "alignment must be a power of two"),
    "alignment 24": (gguf_bytes([u32("general.alignment", 24)]), "alignment must be a power of two"),
    "alignment as text": (gguf_bytes([entry("general.alignment", 8, text("32"))]), "alignment must be a power of two"),
    "alignment true": (gguf_bytes([entry("general.alignment", 7, b"\1")]), "alignment must be a power of two"),
    "no dimensions": (gguf_bytes([], [info("w", [], 0, 0)], ROW), "0 dimensions"),
    "five dimensions": (gguf_bytes([], [info("w", [1] * 5, 0, 0)], ROW), "5 dimensions"),
    "a huge number of dimensions": (gguf_bytes([], [info("w", [4], 0, 0, num_dimensions=1 << 31)], ROW), "dimensions"),
    "dimension 0": (gguf_bytes([], [info("w", [4, 0], 0, 0)], ROW), "product"),
    "dimensions that overflow": (gguf_bytes([], [info("w", [1 << 32, 1 << 32], 0, 0)], ROW), "product"),
    "dimensions that overflow to a small number": (
        gguf_bytes([], [info("w", [1 << 63, 2, 1, 1], 0, 0)], ROW),
        "product",
    ),
    "a tensor larger than the file": (gguf_bytes([], [info("w", [1 << 40, 1 << 20], 0, 0)], ROW), "ends at byte"),
    "a tensor cut short": (gguf_bytes([], ONE, ROW), "tensor 'w' ends at byte"),
    "a tensor past the end": (gguf_bytes([], [info("w", [4], 0, 1 << 40)], ROW), "tensor 'w' ends at byte"),
    "an offset that wraps around": (
        gguf_bytes([], [info("w", [4], 0, (1 << 64) - 32)], ROW),
        "tensor 'w' ends at byte",
    ),
    "an offset off the grid": (gguf_bytes([], [info("w", [4], 0, 16)], ROW * 2), "multiple of 32"),
    "an unknown tensor type": (gguf_bytes([], [info("w", [4], 99, 0)], ROW), "unknown type 99"),
    "a removed tensor type": (gguf_bytes([], [info("w", [32], 4, 0)], ROW * 8), "unknown type 4"),
    "a type that is not supported": (gguf_bytes([], [info("w", [256], 16, 0)], ROW * 8), "IQ2_XXS.*supported are"),
    "rows of half a block": (gguf_bytes([], [info("w", [48, 2], 8, 0)], ROW * 80), "whole 32s"),
    "rows of half a super-block": (gguf_bytes([], [info("w", [128, 2], 12, 0)], ROW * 80), "whole 256s"),
    "tensors that overlap": (gguf_bytes([], [*ONE, info("x", [4], 0, 0)], ROW * 4), "overlaps"),
    "a tensor that occurs twice": (gguf_bytes([], [*ONE, info("w", [4], 0, 32)], ROW * 4), "'w' occurs twice"),
    "a split count of 0": (gguf_bytes([u32("split.count", 0)]), "split.count"),
    "a split count as text": (gguf_bytes([entry("split.count", 8, text("2"))]), "split.count"),
    "a part that is not named like one": (gguf_bytes([u32("split.count", 2)]), "is one of 2 parts"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_header_is_an_error_that_names_the_field_and_allocates_little(tmp_path: Path, case: str) -> None:
    content, message = MALFORMED[case]
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError, match=message):
            read_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_huge_array_in_a_huge_sparse_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_bytes([entry("a", 9, array(8, 1 << 33, b""))]))
    with path.open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(WeightsError, match="metadata 'a' length"):
        read_gguf(path)


def strings(*forms: str) -> bytes:
    """Return the content of an array of 20,000 strings."""
    return b"".join(text(forms[i % len(forms)].replace("$", f"{i % 4096:03x}")) for i in range(20_000))


DENSE = {
    **{
        f"numbers of type {kind}": [entry("a", 9, array(kind, 200_000, b"\x91" * 200_000 * size))]
        for kind, size in {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}.items()
    },
    "empty strings": [entry("a", 9, array(8, 20_000, strings("")))],
    "short strings": [entry("a", 9, array(8, 20_000, strings("ab")))],
    "wide strings": [entry("a", 9, array(8, 20_000, strings("Ā", "Ж", "\U0001f600")))],
    "strings": [entry("a", 9, array(8, 20_000, strings("$")))],
    "entries": [entry(f"{i:04x}", 0, b"\x91") for i in range(20_000)],
    "entries with strings": [entry(f"{i:04x}", 8, text("Ā")) for i in range(20_000)],
    "entries with arrays": [entry(f"{i:04x}", 9, array(0, 1, b"\x91")) for i in range(20_000)],
    "entries with string arrays": [entry(f"{i:04x}", 9, array(8, 1, text("ab"))) for i in range(20_000)],
}


@pytest.mark.parametrize("metadata", DENSE.values(), ids=DENSE)
def test_metadata_takes_memory_in_proportion_to_the_header(tmp_path: Path, metadata: list[bytes]) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_bytes(metadata))
    assert traced(path) < 24 * path.stat().st_size + (1 << 20)


def test_tensors_take_memory_in_proportion_to_the_header(tmp_path: Path) -> None:
    infos = [info(f"{i:04x}", [1], 0, 32 * i) for i in range(20_000)]
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_bytes([], infos, b"\0" * 32 * 20_000))
    assert traced(path) < 24 * path.stat().st_size + (1 << 20)


def traced(path: Path) -> int:
    """Return the most bytes of memory that reading the file took."""
    tracemalloc.start()
    try:
        read_gguf(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_an_array_of_numbers_takes_what_it_takes_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_bytes([entry("a", 9, array(1, 1 << 20, b"\x91" * (1 << 20)))]))
    assert traced(path) < 3 << 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, int]:
    """Return a small model's file, and where its header ends."""
    path = write_gguf(tmp_path_factory.mktemp("model") / "a.gguf")
    content = path.read_bytes()
    return content, content.rindex(b"output.weight") + len(b"output.weight") + 4 + 16 + 4 + 8


def opens(path: Path, content: bytes) -> bool:
    """Tell whether a file opens, and all its tensors can be touched; anything but WeightsError goes through."""
    path.unlink(missing_ok=True)  # earlier maps keep their file
    path.write_bytes(content)
    try:
        checkpoint = open_checkpoint(path)
    except WeightsError:
        return False
    for tensor in checkpoint.tensors.values():
        assert tensor.data.max() >= 0
    return True


def test_a_file_cut_at_any_byte_of_its_header_is_an_error(tmp_path: Path, model: tuple[bytes, int]) -> None:
    content, header = model
    assert opens(tmp_path / "a.gguf", content)
    assert not any(opens(tmp_path / "a.gguf", content[:end]) for end in range(header + 1))
    assert not opens(tmp_path / "a.gguf", content[: len(content) - 32])


def test_all_ones_at_any_byte_of_the_header_are_survived(tmp_path: Path, model: tuple[bytes, int]) -> None:
    content, header = model
    opened = sum(
        opens(tmp_path / "a.gguf", content[:start] + b"\xff" * 8 + content[start + 8 :]) for start in range(header - 8)
    )
    assert opened < header / 10


CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=300, deadline=None, suppress_health_check=CHECKS)
@given(st.data())
def test_any_bytes_changed_give_a_model_or_an_error(
    tmp_path: Path, model: tuple[bytes, int], data: st.DataObject
) -> None:
    content, header = bytearray(model[0]), model[1]
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    opens(tmp_path / "a.gguf", bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))]))


# -- split files ---------------------------------------------------------------------------------


def split(folder: Path, **changes: object) -> list[Path]:
    """Write the small model in two parts, metadata in the first alone."""
    tensors = list(tensors_of(CONFIG, names="gguf").items())
    names = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    keys = {"split.count": 2, "split.tensors.count": len(tensors)} | changes
    first = write_gguf(folder / names[0], metadata=keys | {"split.no": 0}, tensors=dict(tensors[:7]))
    second = write_gguf(folder / names[1], metadata=keys | {"split.no": 1}, tensors=dict(tensors[7:]))
    return [first, second]


def test_any_part_of_a_split_file_stands_for_all(tmp_path: Path) -> None:
    whole = open_checkpoint(write_gguf(tmp_path / "whole.gguf"))
    parts = tmp_path / "parts"
    parts.mkdir()
    for path in (*split(parts), parts):
        checkpoint = open_checkpoint(path)
        assert checkpoint.path.name == "m-00001-of-00002.gguf"
        assert checkpoint.tensors.keys() == whole.tensors.keys()
        assert checkpoint.fingerprint == whole.fingerprint
        for name, tensor in checkpoint.tensors.items():
            np.testing.assert_array_equal(tensor.data, whole.tensors[name].data)


def test_a_split_file_with_a_part_missing_is_refused_by_name(tmp_path: Path) -> None:
    split(tmp_path)[1].unlink()
    with pytest.raises(WeightsError, match=r"put m-00002-of-00002\.gguf beside it"):
        read_gguf(tmp_path / "m-00001-of-00002.gguf")


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    first, second = split(tmp_path)
    shutil.copy(first, second)
    with pytest.raises(WeightsError, match=r"split\.no"):
        read_gguf(first)
    split(tmp_path, **{"split.tensors.count": 99})
    with pytest.raises(WeightsError, match=r"split\.tensors\.count is 99"):
        read_gguf(first)


def test_a_tensor_in_two_parts_is_refused(tmp_path: Path) -> None:
    first, second = split(tmp_path)
    tensors = dict(list(tensors_of(CONFIG, names="gguf").items())[:1])
    write_gguf(second, metadata={"split.count": 2, "split.no": 1}, tensors=tensors)
    with pytest.raises(WeightsError, match="in an earlier part too"):
        read_gguf(first)


def test_part_names_are_told_from_any_of_them() -> None:
    assert part_names("m-00002-of-00003.gguf") == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert part_names("m.gguf") is None
