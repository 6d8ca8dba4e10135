from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def folder(folder: Path) -> str:
    """The tiny model, as an argument."""
    return str(folder)
