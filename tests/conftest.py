"""Fixtures for all tests, and which of them stay together where several processes run them."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from outpace.weights.catalog import DEFAULT, resolve
from tests.folder import make_folder

if TYPE_CHECKING:
    from xdist.scheduler import LoadFileScheduling

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job, whose children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def default_model_path() -> Path:
    """The default model's GGUF file; pulled by the first test that needs it."""
    return resolve(DEFAULT)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, to be read."""
    return make_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """With `--dist loadfile`, keep files together that share the fixtures of a folder: a process makes its own."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = config.rootpath / nodeid.partition("::")[0]
            inner = [folder for folder in file.parents if Path(__file__).parent in folder.parents]
            return str(next((folder for folder in reversed(inner) if (folder / "conftest.py").exists()), file))

    return Together(config, log)
