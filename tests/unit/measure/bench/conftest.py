from __future__ import annotations

from pathlib import Path

import pytest

import outpace
from outpace.api import LanguageModel
from tests.decoding import tiny_ops


@pytest.fixture(scope="session")
def lm(folder: Path) -> LanguageModel:
    return outpace.load(folder, ops=tiny_ops())
