from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from outpace.cli.fields import option_name
from outpace.cli.train import training_fields
from outpace.train.adapt.options import AdaptingOptions
from outpace.train.options import JointOptions, TextOptions, TrainingOptions
from tests.unit.cli.running import outcome, run
from tests.unit.train.test_stages import prompts_file

SMALL = (
    "--num-responses", "20", "--max-tokens", "12", "--num-checked", "4", "--held-out", "0.2", "--steps", "3",
    "--batch-tokens", "256", "--threads", "1",
)  # fmt: skip


def test_the_command_trains_measures_and_says_how_to_use_it(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, out = prompts_file(tmp_path / "p.jsonl", 24), tmp_path / "out"
    command = ["train", "eagle", "--target", folder, "--prompts", str(prompts), "--out", str(out), *SMALL]
    assert run(*command) == 0
    printed = capsys.readouterr()
    assert "Forecast and decoding agree" in printed.out
    assert f"--drafter {out / 'drafter.gguf'}" in printed.out
    for stage in ("prompts:", "held-out:", "responses:", "training:"):
        assert stage in printed.err
    assert run("generate", "-m", folder, "--drafter", str(out / "drafter.gguf"), "-n", "4", "the cat") == 0
    assert capsys.readouterr().out.strip()
    assert run(*command) == 0, "finished: told again"
    assert capsys.readouterr().out == printed.out
    assert run(*command, "--seed", "3") == 2
    assert "seed was 0 and is 3" in capsys.readouterr().err


def test_a_check_that_fails_ends_with_exit_code_1(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from outpace.train.report.forecast import Check, Row
    from outpace.train.report.outcome import Finished

    bad = Finished(tmp_path / "drafter.gguf", Check((), (Row("all", False, 1, 9, 2.0, 1.0),), 0))
    monkeypatch.setattr("outpace.train.report.outcome.finish", lambda *given: bad)
    assert run("train", "eagle", "-m", folder, "-o", str(tmp_path / "out"), "--threads", "1") == 1
    assert "DISAGREE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hydra"], "kind"),
        (["eagle", "--budget", "soon"], "--budget must be a time"),
        (["eagle", "--max-draft", "9"], "--max-draft must be"),
        (["eagle", "--max-tokens", "1"], "--max-tokens must be"),
        (["eagle", "--prompts", "a", "--texts", "b"], "--prompts and --texts"),
        (["eagle", "--rank", "8"], "--rank would be ignored by eagle (it belongs to diffusion, jacobi)"),
        (["diffusion", "--max-draft", "3"], "--max-draft would be ignored by diffusion"),
        (["jacobi", "--weights", "full", "--from", "a"], "--from would be ignored by jacobi with --weights full"),
        (["diffusion", "--block", "1"], "--block must be"),
        (["jacobi", "--shift", "1"], "--shift would be ignored by jacobi"),
    ],
)
def test_wrong_options_are_refused_before_a_model_is_loaded(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", *arguments, "--target", "nothing-like-this", "--out", str(tmp_path)) == 2
    assert said in capsys.readouterr().err


def test_a_file_in_place_of_the_folder_is_refused(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x").write_text("")
    assert run("train", "eagle", "--target", folder, "--out", str(tmp_path / "x")) == 2
    assert "--out" in capsys.readouterr().err


def test_without_pytorch_the_cure_is_told(tmp_path: Path) -> None:
    hide = (
        "import importlib.util as util; find = util.find_spec\n"
        "util.find_spec = lambda name, *package: None if name == 'torch' else find(name, *package)"
    )
    found = outcome("train", "eagle", "--target", "nothing-like-this", "--out", str(tmp_path), before=hide)
    assert found.returncode == 2
    assert b"pip install 'outpace[train]'" in found.stderr


def test_other_commands_import_nothing_of_training(folder: str) -> None:
    after = (
        "import atexit, sys; heavy = {'torch', 'outpace.train.stages', 'outpace.train.text.corpus'}\n"
        "atexit.register(lambda: print('heavy:', *heavy & set(sys.modules), file=sys.__stderr__))"
    )
    found = outcome("models", before=after)
    assert found.returncode == 0
    assert found.stderr.decode().strip().endswith("heavy:")


@pytest.mark.parametrize(("kind", "strategy"), [("diffusion", "block_diffusion"), ("jacobi", "jacobi")])
def test_an_adapter_is_trained_measured_and_used(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, strategy: str
) -> None:
    prompts, out = prompts_file(tmp_path / "p.jsonl", 24), tmp_path / "out"
    options = ["--prompts", str(prompts), "--out", str(out), *SMALL, "--block", "4", "--evaluations", "1"]
    assert run("train", kind, "--target", folder, *options) == 0
    printed = capsys.readouterr()
    assert "tokens per pass" in printed.out
    assert f"--adapter {out / 'adapter.gguf'} -s {strategy}" in printed.out
    assert re.search(r"training: 3 steps; \d.*tokens per pass.*\(\d.* before\)", printed.err)
    adapter = ["--adapter", str(out / "adapter.gguf"), "-s", strategy]
    assert run("generate", "-m", folder, *adapter, "-n", "4", "the cat") == 0
    assert capsys.readouterr().out.strip()


def test_every_field_is_an_option() -> None:
    names = {
        own.name
        for cls in (TextOptions, TrainingOptions, JointOptions, AdaptingOptions)
        for own in dataclasses.fields(cls)
    }
    made: dict[str, Any] = training_fields().parameters()
    assert set(made) == names
    for name in names:
        option = made[name].annotation.__metadata__[0]
        assert ("--from" if name == "start" else option_name(name)) in (option.default, *option.param_decls)


def test_heads_are_trained_with_their_target_and_both_files_are_used_together(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, out = prompts_file(tmp_path / "p.jsonl", 24), tmp_path / "out"
    command = ["train", "medusa", "--joint", "--target", folder, "--prompts", str(prompts), "--out", str(out), *SMALL]
    assert run(*command, "--rank", "4") == 0
    printed = capsys.readouterr().out
    assert "lossy relative to the original" in printed
    assert "next tokens that are the original's" in printed
    both = ["--adapter", str(out / "adapter.gguf"), "--drafter", str(out / "drafter.gguf")]
    assert " ".join(both) in printed
    assert run("generate", "-m", folder, *both, "-s", "medusa", "-n", "4", "the cat") == 0
    assert capsys.readouterr().out.strip()
    assert run(*command, "--rank", "8") == 2
    assert "rank was 4 and is 8" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "owner"), [("eagle", "would be ignored by eagle"), ("jacobi", "belongs to medusa")])
def test_other_kinds_refuse_to_tune_a_target(kind: str, owner: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", kind, "--joint", "-o", "x") == 2
    assert owner in capsys.readouterr().err
