from __future__ import annotations

from pathlib import Path

import pytest

from tests.folder import make_folder
from tests.unit.cli.running import run

pytest.importorskip("outpace.ops.native._native")


def test_a_folder_becomes_a_small_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, output = make_folder(tmp_path / "model", hidden_size=64), tmp_path / "small.gguf"
    assert run("quantize", str(folder), str(output), "--format", "q8_0", "--threads", "1") == 0
    said = capsys.readouterr().out
    assert f"{output}: " in said
    assert "Q8_0" in said
    assert output.is_file()


def test_an_unknown_format_lists_those_that_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_folder(tmp_path / "model")
    assert run("quantize", str(folder), str(tmp_path / "small.gguf"), "--format", "q4k") == 2
    assert "unknown format 'q4k': did you mean 'q4_k'" in capsys.readouterr().err
