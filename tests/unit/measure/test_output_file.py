from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from outpace.errors import UsageError
from outpace.measure.output_file import OutputFile, save


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_a_new_file_gets_the_permissions_that_any_program_gives_it(tmp_path: Path, umask: None) -> None:
    save(tmp_path / "x", "text é")
    assert (tmp_path / "x").read_text(encoding="utf-8") == "text é"
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["x"]


def test_an_earlier_file_is_replaced_whole_and_keeps_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("earlier")
    (tmp_path / "x").chmod(0o604)
    before = (tmp_path / "x").stat()
    with OutputFile(tmp_path / "x") as output:
        assert (tmp_path / "x").read_text() == "earlier"
        output.write(b"new")
    after = (tmp_path / "x").stat()
    assert (tmp_path / "x").read_bytes() == b"new"
    assert stat.S_IMODE(after.st_mode) == 0o604
    assert after.st_ino != before.st_ino
    assert os.listdir(tmp_path) == ["x"]


def test_without_a_write_everything_stays_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("earlier")
    for name in ("x", "y"):
        OutputFile(tmp_path / name).close()
    with pytest.raises(KeyboardInterrupt), OutputFile(tmp_path / "y"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["x"]
    assert (tmp_path / "x").read_text() == "earlier"


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_a_link_and_its_target_is_written(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "there").mkdir()
    if exists:
        (tmp_path / "there" / "x").write_text("earlier")
    (tmp_path / "link").symlink_to("there/x")
    (tmp_path / "second").symlink_to(tmp_path / "link")
    save(tmp_path / "second", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "second").is_symlink()
    assert not (tmp_path / "there" / "x").is_symlink()
    assert (tmp_path / "there" / "x").read_text() == "new"


def test_a_second_hard_link_sees_the_new_text(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("earlier and longer")
    os.link(tmp_path / "x", tmp_path / "y")
    save(tmp_path / "x", "new")
    assert (tmp_path / "y").read_text() == "new"


def test_a_pipe_stays_a_pipe_and_its_reader_gets_everything(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    text = "x" * 1_000_000  # more than a pipe holds
    save(pipe, text)
    reader.join()
    assert read == [text.encode()]
    assert pipe.is_fifo()


def test_a_descriptor_of_this_process_is_written_where_it_stands(tmp_path: Path) -> None:
    with (tmp_path / "x").open("w+b") as file:
        file.write(b"before, ")
        file.flush()
        save(f"/dev/fd/{file.fileno()}", "after")
        save(f"/proc/self/fd/{file.fileno()}", "wards")
        assert (tmp_path / "x").read_bytes() == b"before, afterwards"


def test_devices_are_written_into() -> None:
    before = os.stat("/dev/null")
    save("/dev/null", "text")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert os.stat("/dev/null").st_ino == before.st_ino


def test_a_device_node_stays_one(tmp_path: Path) -> None:
    try:
        os.mknod(tmp_path / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        save(tmp_path / "null", "text")
    except (PermissionError, UsageError):  # no root, or a file system that allows no devices
        pytest.skip("devices cannot be made here")
    assert (tmp_path / "null").is_char_device()


def test_a_full_disk_leaves_the_earlier_file_whole(tmp_path: Path) -> None:
    """A limit on file sizes stands for the disk: writing beyond it fails as on a full one."""
    (tmp_path / "x").write_text("earlier")
    code = (
        "import resource, sys; from outpace.measure.output_file import save\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "try: save(sys.argv[1], 'y' * 1000)\n"
        "except OSError as error: print(error.filename, error.strerror)"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for name in ("x", "new"):
        command = [sys.executable, "-c", code, str(tmp_path / name)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        assert done.stdout == f"{tmp_path / name} File too large\n"
    assert os.listdir(tmp_path) == ["x"]
    assert (tmp_path / "x").read_text() == "earlier"


def test_a_full_device_is_told_with_its_name() -> None:
    with OutputFile("/dev/full") as output, pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        output.write("x")


@pytest.mark.parametrize("length", [1, 253, 255])
def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path, length: int) -> None:
    save(tmp_path / ("x" * length), "text")
    assert (tmp_path / ("x" * length)).read_text() == "text"


@pytest.mark.parametrize(
    "name", ["", ".", "folder", "folder/", "no/x", "x" * 256, "x\0y", "loop", "to-nowhere", "file/x"]
)
def test_what_cannot_be_written_is_refused_when_it_is_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "to-nowhere").symlink_to("no/x")
    with pytest.raises(UsageError, match="cannot be written"):
        OutputFile(os.path.join(tmp_path, name))
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "loop", "to-nowhere"]


AS_NOBODY = """
import os, sys
from outpace.measure.output_file import save
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try: save(sys.argv[1], "new")
except Exception as error: print(type(error).__name__, error)
"""


def as_nobody(path: Path) -> str:
    """Save a file as a user without rights; return what went wrong."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", AS_NOBODY, str(path)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    """A folder that other users reach."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(0o755)
    return tmp_path


def test_a_folder_that_takes_no_new_files_is_refused(open_folder: Path) -> None:
    assert as_nobody(open_folder / "x").startswith("UsageError")
    (open_folder / "x").write_text("earlier")
    (open_folder / "x").chmod(0o644)
    assert "Permission denied" in as_nobody(open_folder / "x")
    assert (open_folder / "x").read_text() == "earlier"


def test_a_writable_file_of_somebody_else_is_written_in_place(open_folder: Path) -> None:
    (open_folder / "x").write_text("earlier")
    (open_folder / "x").chmod(0o666)
    assert as_nobody(open_folder / "x") == ""  # the folder takes no new files
    assert (open_folder / "x").read_text() == "new"
    open_folder.chmod(0o777)
    (open_folder / "x").write_text("earlier")
    assert as_nobody(open_folder / "x") == ""  # a new file could not belong to root
    assert (open_folder / "x").read_text() == "new"
    assert (open_folder / "x").stat().st_uid == 0
    assert os.listdir(open_folder) == ["x"]


def test_half_surrogates_are_escaped(tmp_path: Path) -> None:
    save(tmp_path / "x", "caf\udce9")
    assert (tmp_path / "x").read_bytes() == rb"caf\udce9"


def test_two_names_of_one_file_are_told_apart_from_two_files(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("x")
    one, link, other = OutputFile(tmp_path / "x"), OutputFile(tmp_path / "link"), OutputFile(tmp_path / "y")
    assert one.same_file(link)
    assert not one.same_file(other)
    with OutputFile("/dev/null") as first, OutputFile("/dev/null") as second:
        assert not first.same_file(second)
