"""Sharing work out in pieces, tested in C++ where threads really race."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("pieces.cpp")
INCLUDE = Path(__file__).parents[4] / "src" / "outpace" / "ops" / "native" / "src"


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_every_piece_is_taken_once_in_every_round(tmp_path: Path) -> None:
    program = tmp_path / "pieces"
    subprocess.run(
        ["g++", "-std=c++20", "-O2", "-pthread", f"-I{INCLUDE}", str(SOURCE), "-o", str(program)], check=True
    )
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
