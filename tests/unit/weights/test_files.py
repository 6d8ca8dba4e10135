from __future__ import annotations

import itertools
import json
import os
import socket
import string
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from outpace.errors import TokenizerError, UsageError, WeightsError
from outpace.models import open_checkpoint
from outpace.tokenizer import Tokenizer
from outpace.weights.files import FREE, map_file, parse_object, read_object
from tests.unit.weights.tiny import CONFIG, write_folder, write_gguf

PER_BYTE, FREE_BYTES = 24, 1 << 20  # what the module says

# -- what is no regular file -----------------------------------------------------------------------


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize("make", [os.mkfifo, make_socket, os.mkdir])
@pytest.mark.parametrize("read", [map_file, read_object])
def test_what_is_no_regular_file_is_refused_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], read: Callable[[Path], object]
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's name must be short
    make(Path("file"))
    with pytest.raises(WeightsError, match=r"file: must be a regular file, is a (named pipe|socket|folder)"):
        read(Path("file"))


def test_devices_are_refused() -> None:
    with pytest.raises(WeightsError, match="/dev/zero: must be a regular file, is a device"):
        read_object(Path("/dev/zero"))


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.json",
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
    ],
)
def test_no_file_of_a_folder_can_make_its_reader_wait(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "model", CONFIG)
    (folder / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}})
    )
    (folder / name).unlink(missing_ok=True)
    (folder / name).parent.mkdir(exist_ok=True)
    os.mkfifo(folder / name)
    reader = Tokenizer.from_folder if "tok" in name or "chat" in name else open_checkpoint
    with pytest.raises(WeightsError, match=f"{name}: must be a regular file, is a named pipe"):
        reader(folder)


@pytest.mark.parametrize("name", ["model.gguf", "model-without-suffix"])
def test_a_gguf_path_that_is_a_pipe_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises((WeightsError, UsageError), match="must be a regular file, is a named pipe"):
        open_checkpoint(tmp_path / name)


def test_a_part_of_a_split_file_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    first = write_gguf(tmp_path / "m-00001-of-00002.gguf", metadata={"split.count": 2, "split.no": 0})
    os.mkfifo(tmp_path / "m-00002-of-00002.gguf")
    with pytest.raises(WeightsError, match=r"m-00002-of-00002\.gguf: must be a regular file, is a named pipe"):
        open_checkpoint(first)


def test_a_broken_link_to_an_optional_file_is_an_error_and_not_its_absence(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", CONFIG)
    (folder / "generation_config.json").symlink_to("nowhere")
    with pytest.raises(WeightsError, match=r"generation_config\.json: cannot be read: No such file"):
        open_checkpoint(folder)


def test_links_are_followed(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", CONFIG)
    (folder / "config.json").rename(folder / "blob")
    (folder / "config.json").symlink_to("blob")
    assert open_checkpoint(folder).config["vocab_size"] == CONFIG["vocab_size"]


# -- memory and time -------------------------------------------------------------------------------


def distinct(length: int) -> itertools.chain[str]:
    """Return distinct names, the shortest first."""
    letters = string.ascii_letters + string.digits
    return itertools.chain.from_iterable(map("".join, itertools.product(letters, repeat=n)) for n in range(2, length))


def members(form: str, width: int, size: int) -> bytes:
    """Return an object of `size` bytes: members of `form` ($ is the name), each at least `width` long."""
    names, parts, length = distinct(5), list[str](), 0
    while length < size:
        parts.append(form.replace("$", next(names)).ljust(width))
        length += len(parts[-1])
    return ("{" + "".join(parts).rstrip(", ") + "}").encode()


def items(form: str, size: int) -> bytes:
    return ('{"a":[' + form * (size // len(form)) + "0]}").encode()


SIZE = 1 << 19
DENSE = {
    "lists": items("[],", SIZE),
    "nested lists": items("[[[]]],", SIZE),
    "objects": items("{},", SIZE),
    "small objects": items('{"":0},', SIZE),
    "members": members('"$":0,', 0, SIZE),
    "lists as sparse as allowed": items("[],      ", SIZE),
    "filled lists as sparse as allowed": items("[-9],   ", SIZE),
    "members as sparse as allowed": members('"$":-9,', 8, SIZE),
    "members with strings": members('"$":"Ā",', 8, SIZE),
    "members with objects": members('"$":{},', 16, SIZE),
    "members with members": members('"$":{"":-9},', 24, SIZE),
    "strings": items('"ab",', SIZE),
    "wide strings": items('"Ā",', SIZE),
    "escaped strings": items('"\\u0100",', SIZE),
    "integers": items("-9,", SIZE),
    "floats": items("1e9,", SIZE),
    "brackets in strings": members('"$":"[[[[[[[[[{{{{{::::::\\"[[[[[[",', 0, SIZE),
}


@pytest.mark.parametrize("text", DENSE.values(), ids=DENSE)
def test_json_takes_memory_in_proportion_to_its_text(text: bytes) -> None:
    tracemalloc.start()
    try:
        parse_object(text, "config.json")
    except WeightsError as error:
        assert "is not a description of a model" in str(error)  # noqa: PT017 - both ends are right
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < PER_BYTE * len(text) + FREE_BYTES


def test_the_bound_could_be_broken() -> None:
    """The control: Python's own parser takes more than that for dense text, so the test above can fail."""
    tracemalloc.start()
    json.loads(DENSE["small objects"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak > PER_BYTE * SIZE


def test_brackets_in_strings_and_small_files_do_not_count() -> None:
    assert len(parse_object(DENSE["brackets in strings"], "x")) > FREE
    assert parse_object(items("[],", FREE), "x")["a"][0] == []


def test_the_header_of_a_real_model_is_not_too_dense() -> None:
    header = {
        f"model.layers.{i}.{name}.weight": {"dtype": "F16", "shape": shape, "data_offsets": [0, 8192]}
        for i in range(2000)
        for name, shape in [("mlp.down_proj", [64, 64]), ("input_layernorm", [64])]
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    assert parse_object(text, "x") == header


def test_names_that_occur_twice_are_told_wherever_they_stand() -> None:
    with pytest.raises(WeightsError, match=r"the name 'b' occurs twice"):
        parse_object(b'{"x": [{"a": {"b": ":", "b": 2}}]}', "x")


# -- stdout ----------------------------------------------------------------------------------------


def test_a_pipe_given_to_load_ends_in_an_error_and_writes_nothing_to_stdout(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.gguf")
    code = "import sys, outpace; outpace.load(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.gguf"], capture_output=True, timeout=60)
    assert b"must be a regular file" in done.stderr
    assert done.stdout == b""


def test_foreign_json_never_does_more_than_raise(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", CONFIG)
    for content in (b"\xff\xfe", b"[]", b"null", b'"x"', b"", b"1" * 5000, b'{"a": NaN}x'):
        (folder / "tokenizer.json").write_bytes(content)
        with pytest.raises(TokenizerError):
            Tokenizer.from_folder(folder)
