from __future__ import annotations

import subprocess
import sys

import pytest

import outpace


@pytest.mark.parametrize("name", outpace.__all__)
def test_every_public_name_can_be_had_and_is_listed(name: str) -> None:
    assert getattr(outpace, name) is not None
    assert name in dir(outpace)


def test_an_unknown_name_is_told_as_python_tells_it() -> None:
    with pytest.raises(AttributeError, match="module 'outpace' has no attribute 'lode'"):
        outpace.lode  # noqa: B018 - the access is the test


def test_public_names_cost_their_import_only_when_they_are_used() -> None:
    code = "import sys, outpace; print('numpy' in sys.modules); outpace.load; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True)
    assert done.stdout == b"False\nTrue\n", done.stderr


def test_everything_can_be_imported_at_once() -> None:
    names: dict[str, object] = {}
    exec("from outpace import *", names)
    assert set(outpace.__all__) <= set(names)
