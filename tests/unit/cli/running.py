"""Run the command line: in this process, or in one of its own, where it owns the standard streams."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from outpace import cli

SMALL = ["--ops", "reference", "--threads", "1"]
ENTRY = "from outpace.cli import main; main()"


def run(*arguments: str) -> int:
    """Return the exit code of the command line, run in this process."""
    with pytest.raises(SystemExit) as end:
        cli.main(list(arguments))
    return int(end.value.code or 0)


def command(*arguments: str, before: str = "") -> list[str]:
    """Return the command that runs the command line in a process of its own; `before` is Python to run first."""
    return [sys.executable, "-c", f"{before}\n{ENTRY}", *arguments]


def environment(**changes: str) -> dict[str, str]:
    """Return the environment for `command`."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | changes


def outcome(*arguments: str, before: str = "", env: dict[str, str] | None = None, **how: Any) -> Any:
    """Run the command line in a process of its own and return what came of it (stdout and stderr as bytes)."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | how
    if "input" in how:
        del streams["stdin"]
    return subprocess.run(
        command(*arguments, before=before), env=environment(**(env or {})), timeout=120, check=False, **streams
    )
