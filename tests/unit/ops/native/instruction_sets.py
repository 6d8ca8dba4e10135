"""Run Python, or a file of tests, with the kernels held to an instruction set."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

native = pytest.importorskip("outpace.ops.native._native")

VARIABLE = "OUTPACE_ISA"
NAMES = ("baseline", "avx2", "avx512")


def run_with(isa: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {VARIABLE: isa, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


def ask(isa: str) -> subprocess.CompletedProcess[str]:
    return run_with(isa, "-c", "from outpace.ops.native import _native; _native.isa()")


def assert_passes(file: str, isa: str) -> None:
    """Run a file of tests with an instruction set that the machine has beside the one of this process."""
    if VARIABLE in os.environ:
        pytest.skip("this run is for one instruction set already")
    if isa == native.isa():
        pytest.skip("the other tests of this run are for it")
    if "which this CPU lacks" in ask(isa).stderr:
        pytest.skip(f"this CPU lacks {isa}")
    found = run_with(isa, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", file)
    assert found.returncode == 0, found.stdout + found.stderr
