from __future__ import annotations

import json
from pathlib import Path

import pytest

from outpace.models import architectures
from outpace.ops.formats import BLOCKS
from tests.unit.cli.running import run


def test_models_and_version_tell_what_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OUTPACE_CACHE", str(tmp_path))
    assert run("models") == 0
    listed = capsys.readouterr().out
    assert "not here yet: outpace pull smollm2-135m" in listed
    assert f"of the architectures (model_type): {', '.join(architectures())}" in listed
    assert f"in the formats: {', '.join(BLOCKS)}" in listed
    assert run("models", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0] == {
        "name": "smollm2-135m",
        "licence": "Apache-2.0",
        "bytes": 98362432,
        "path": None,
    }
    assert run("version") == 0
    assert capsys.readouterr().out.startswith("outpace 0.1.0 (")
