from __future__ import annotations

import pytest

from tests.folder import make_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model."""
    return str(make_folder(tmp_path_factory.mktemp("model") / "tiny"))
