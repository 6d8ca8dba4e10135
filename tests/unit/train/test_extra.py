from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from outpace.errors import UsageError
from outpace.train import extra


def test_what_is_installed_is_enough() -> None:
    extra.require()


def test_a_missing_package_is_named_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec

    def without_torch(name: str, package: str | None = None) -> Any:
        return None if name == "torch" else found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without_torch)
    with pytest.raises(
        UsageError, match=r"training needs torch, which is not installed: pip install 'outpace\[train\]'"
    ):
        extra.require()
