from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.training import tiny_lm
from tests.unit.cli.running import run
from tests.unit.train.test_stages import prompts_file

SMALL = (
    "--num-responses", "20", "--max-tokens", "12", "--num-checked", "4", "--held-out", "0.2", "--steps", "3",
    "--batch-tokens", "256", "--threads", "1", "--evaluations", "1",
)  # fmt: skip


def test_the_command_makes_a_student_measures_it_and_compares_it_with_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = str(tiny_lm(tmp_path, num_hidden_layers=3).path)
    prompts = prompts_file(tmp_path / "p.jsonl", 24)
    outs = []
    for layers in ("2", "0,2"):
        out = tmp_path / f"out{layers[0]}"
        command = ["distill", "--teacher", teacher, "--layers", layers, "--prompts", str(prompts), "--out", str(out)]
        assert run(*command, *SMALL) == 0
        outs.append(out)
    printed = capsys.readouterr()
    assert "| student |" in printed.out
    assert f"--draft-model {outs[0] / 'student.gguf'}" in printed.out
    for stage in ("prompts:", "held-out:", "responses:", "training:"):
        assert stage in printed.err
    assert run(*command, *SMALL) == 0, "finished: told again"
    assert capsys.readouterr().out == printed.out[len(printed.out) // 2 :]
    student, prompt = str(outs[0] / "student.gguf"), "the cat"
    assert run("generate", "-m", student, "-n", "4", prompt) == 0
    lossless = ["generate", "-m", teacher, "-n", "12", prompt]
    assert run(*lossless, "--strategy", "none") == 0
    capsys.readouterr()
    assert run(*lossless, "--strategy", "none") == 0
    expected = capsys.readouterr().out
    assert run(*lossless, "--strategy", "draft_model", "--draft-model", str(outs[1] / "student")) == 0
    assert capsys.readouterr().out == expected

    assert run("distill", "report", *map(str, outs), "--plot", str(tmp_path / "frontier.png")) == 0
    table = capsys.readouterr().out
    assert all(f"| {name} |" in table for name in ("teacher", "out2", "out0"))
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((outs[1] / "result.json").read_text())["layers"] == [0, 2]
    assert "# A student of" in (outs[1] / "card.md").read_text()


def test_a_run_may_stop_behind_a_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = str(tiny_lm(tmp_path, num_hidden_layers=3).path)
    prompts, out = prompts_file(tmp_path / "p.jsonl", 24), tmp_path / "out"
    command = ["distill", "--teacher", teacher, "--layers", "1", "--prompts", str(prompts), "--out", str(out), *SMALL]
    for stage, there in (("responses", False), ("training", True)):
        assert run(*command, "--until", stage) == 0
        assert f"{stage}: done" in capsys.readouterr().out
        assert (out / "student.gguf").exists() == there
    assert not (out / "card.md").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give one of them"),
        (["--layers", "2"], "--out is missing"),
        (["--layers", "2", "--student", "x"], "give one of them"),
        (["--layers", "1-3"], "--layers must be"),
        (["--layers", "0,1", "--importance", "perplexity"], "--importance would be ignored"),
        (["--student", "x", "--width", "8"], "--width is about layers of the teacher"),
        (["--student", "x", "--hidden", "1"], "--hidden is about layers of the teacher"),
        (["--layers", "2", "--as", "toy"], "unknown as 'toy'"),
        (["--layers", "2", "--objective", "mse"], "unknown objective 'mse'"),
        (["report", "nowhere"], "holds no finished run"),
    ],
)
def test_what_cannot_work_is_told_before_any_work(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("distill", *arguments) == 2
    assert said in capsys.readouterr().err
