from __future__ import annotations

import json
from pathlib import Path

import pytest

import outpace
from tests.folder import make_folder
from tests.published import SPECULATORS, write_ours, write_published
from tests.unit.cli.running import run


@pytest.fixture(scope="module")
def ours(folder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    lm = outpace.load(folder, ops="reference", threads=1)
    return str(write_ours(lm, tmp_path_factory.mktemp("drafter") / "eagle.gguf"))


def test_inspect_tells_what_a_drafter_is(ours: str, folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("drafter", "inspect", ours, "--model", folder) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["kind"] == "eagle, in the layout of Outpace"
    assert lines["made"] == "for    Tiny (320 tokens, width 48, 2 layers, llama)"
    assert lines["taps"] == "the outputs of layers 1, 2"
    assert lines["head"] == "213 of 320 tokens, 24 always and the others where they are in the sequence"
    assert "for the first token of a draft" in lines["reads"]
    assert "of a pass of the model" in lines["reads"]
    assert lines["fits"] == f"{folder} (the same tokens)"


def test_inspect_of_a_published_drafter_says_what_is_not_stated(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drafter = write_published(Path(folder), tmp_path / "d", eagle_aux_hidden_state_layer_ids=None)
    assert run("drafter", "inspect", str(drafter)) == 0
    out = capsys.readouterr().out
    assert "eagle, in the layout of SafeAILab" in out
    assert "a model that its files do not name (320 tokens, width 48)" in out
    assert "layers 2, n / 2 and n - 3 of a model of n layers" in out
    assert "fits" not in out


def test_inspect_warns_of_a_model_that_lacks_the_adapter_of_the_drafters_target(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lm = outpace.load(folder, ops="reference", threads=1)
    path = str(write_ours(lm, tmp_path / "heads.gguf", **{"target.adapter": "0123456789abcdef"}))
    assert run("drafter", "inspect", path) == 0
    assert "(Medusa-2; 0123456789ab): load both" in capsys.readouterr().out
    assert run("drafter", "inspect", path, "-m", folder) == 0
    assert f"WARNING: {folder} is not merged with it: load it too (--adapter)" in capsys.readouterr().out
    merged = make_folder(tmp_path / "merged", outpace_tuned_by="0123456789abcdef")
    assert run("drafter", "inspect", path, "-m", str(merged)) == 0
    assert f"which is merged into {merged}" in capsys.readouterr().out


def test_inspect_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("drafter", "inspect", str(SPECULATORS / "plain"), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["layout"], found["network"]["taps"]) == ("eagle", "speculators", [1, 2, 3])
    assert found["target"] == {
        **{"vocabulary": None, "model_type": "llama", "vocab_size": 31, "width": 16, "num_layers": None},
    }


def test_a_drafter_of_another_model_is_an_error_with_the_reason(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("drafter", "inspect", str(SPECULATORS / "plain"), "-m", folder) == 2
    assert "its width is 48, must be 16" in capsys.readouterr().err


def test_export_writes_a_folder_that_inspect_knows(
    ours: str, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert run("drafter", "export", ours, "--out", out, "-m", folder, "--name", "owner/tiny") == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert run("drafter", "inspect", out, "-m", folder) == 0
    assert "made for    owner/tiny" in capsys.readouterr().out
    assert run("drafter", "export", ours, "--out", out, "-m", folder) == 2
    assert "must be an empty folder" in capsys.readouterr().err


def test_a_group_without_a_command_shows_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("drafter") == 0
    out = capsys.readouterr().out
    assert "Say what a drafter is" in out
    assert "export" in out
