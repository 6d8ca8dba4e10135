from __future__ import annotations

import json
from pathlib import Path

import pytest

from outpace.models import architectures
from outpace.ops.formats import BLOCKS
from tests.folder import make_folder
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
    assert "quantised already (quant_method): fp8, compressed-tensors, awq, gptq" in listed
    assert run("models", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0] == {
        "name": "smollm2-135m",
        "licence": "Apache-2.0",
        "bytes": 98362432,
        "path": None,
    }
    assert run("version") == 0
    assert capsys.readouterr().out.startswith("outpace 0.1.0 (")


def test_models_tells_what_one_takes_without_loading_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(tmp_path / "tiny")
    monkeypatch.setattr("outpace.models.build", None)
    assert run("models", str(folder)) == 0
    weights, cache, free = capsys.readouterr().out.splitlines()
    assert weights.startswith("weights: ")
    assert cache == "keys and values: 192 B a token, 393 kB for all its 2,048 positions"
    assert free.startswith("free here: ")
    assert run("models", str(folder), "--json") == 0
    assert json.loads(capsys.readouterr().out)["per_token"] == 192
    assert run("models", str(tmp_path / "missing.gguf")) == 2
