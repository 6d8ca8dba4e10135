from __future__ import annotations

import io
import json
import os
import sys

import pytest

from outpace.cli import streams
from tests.unit.cli.running import outcome


def test_a_closed_standard_output_is_refused_before_the_work() -> None:
    closed = outcome("generate", "hi", "-m", "/no/such/model", before="import os", preexec_fn=lambda: os.close(1))
    assert closed.returncode == 2
    assert closed.stderr.startswith(b"error: standard output is closed")
    assert closed.stderr.count(b"\n") == 1


def test_other_closed_streams_cost_nothing() -> None:
    closed = outcome("models", preexec_fn=lambda: (os.close(0), os.close(2)))
    assert closed.returncode == 0
    assert b"smollm2-135m" in closed.stdout


def test_a_reader_that_is_gone_and_a_full_disk_end_every_command_without_a_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    gone = outcome("models", stdout=write)
    os.close(write)
    assert (gone.returncode, gone.stderr) == (141, b"")
    for arguments in (["models"], ["version"], ["generate", "--help"]):
        with open("/dev/full", "wb") as full:
            done = outcome(*arguments, stdout=full)
        assert done.returncode == 2, arguments
        assert done.stderr.startswith(b"error: ")
        assert done.stderr.endswith(b"No space left on device\n")
        assert done.stderr.count(b"\n") == 1


def test_standard_error_that_is_full_costs_no_text() -> None:
    with open("/dev/full", "wb") as full:
        done = outcome("models", stderr=full, before="import warnings; warnings.warn('early')")
    assert b"smollm2-135m" in done.stdout


@pytest.mark.parametrize(
    ("encoding", "ascii_only"), [("utf-8", False), ("UTF8", False), ("latin-1", True), ("ascii", True), ("cp932", True)]
)
def test_json_is_escaped_unless_the_stream_is_utf8(
    encoding: str, ascii_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    written = streams.as_json({"text": "café"})
    assert written.isascii() == ascii_only
    assert json.loads(written) == {"text": "café"}


def test_half_a_surrogate_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    streams.put(streams.as_json({"path": "caf\udce9", "text": "日本"}))
    assert isinstance(sys.stdout, io.TextIOWrapper)
    written = sys.stdout.buffer.getvalue()  # type: ignore[attr-defined]
    assert json.loads(written) == {"path": "caf\udce9", "text": "日本"}
