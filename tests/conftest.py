"""Fixtures for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from outpace.weights.catalog import DEFAULT, resolve


@pytest.fixture(scope="session")
def default_model_path() -> Path:
    """The default model's GGUF file; pulled by the first test that needs it."""
    return resolve(DEFAULT)
