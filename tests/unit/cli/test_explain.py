from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from tests.unit.cli.running import SMALL, outcome, run


@pytest.fixture
def trace(folder: str, tmp_path: Path) -> Path:
    path = tmp_path / "trace.json"
    assert run("generate", "the cat", "-m", folder, "-n", "6", "--raw", "--trace", str(path), *SMALL) == 0
    return path


def test_the_page_is_written_beside_the_trace_and_its_path_printed(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run("explain", str(trace)) == 0
    assert capsys.readouterr().out == f"{trace.with_suffix('.html')}\n"
    assert trace.with_suffix(".html").read_text(encoding="utf-8").startswith("<!")


def test_a_pipe_gets_the_page(trace: Path, tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text(encoding="utf-8")))
    reader.start()
    assert run("explain", str(trace), "-o", str(pipe)) == 0
    reader.join()
    assert read[0].startswith("<!")
    assert pipe.is_fifo()


def test_a_trace_may_come_through_a_pipe_if_the_page_has_a_name(trace: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    piped = outcome("explain", "/dev/stdin", "-o", str(page), input=trace.read_bytes())
    assert piped.returncode == 0, piped.stderr
    assert page.read_text(encoding="utf-8").startswith("<!")
    nameless = outcome("explain", "/dev/stdin", input=trace.read_bytes())
    assert nameless.returncode == 2
    assert b"name the page with --output" in nameless.stderr


@pytest.mark.parametrize("arguments", [["-o", "trace.json"], ["-o", "link"]])
def test_the_page_never_replaces_the_trace(
    trace: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trace.parent)
    Path("link").symlink_to("trace.json")
    before = trace.read_bytes()
    assert run("explain", "trace.json", *arguments) == 2
    assert "would replace the trace" in capsys.readouterr().err
    assert trace.read_bytes() == before
    trace.rename("trace.html")
    assert run("explain", "trace.html") == 2
    assert Path("trace.html").read_bytes() == before


def test_what_is_no_trace_leaves_an_earlier_page_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "trace.json").write_bytes(b'{"caf\xe9": 1}')
    (tmp_path / "trace.html").write_text("earlier")
    assert run("explain", str(tmp_path / "trace.json")) == 2
    assert "byte 0xe9 at offset 5" in capsys.readouterr().err
    assert (tmp_path / "trace.html").read_text() == "earlier"
    assert sorted(os.listdir(tmp_path)) == ["trace.html", "trace.json"]
