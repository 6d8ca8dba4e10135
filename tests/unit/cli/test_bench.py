from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.running import SMALL, command, environment, run

BRIEF = [*SMALL, "-n", "6", "--repeats", "1"]


def prompts_file(path: Path) -> str:
    path.write_text('{"category": "x", "turns": ["the cat sat"]}\n{"category": "y", "turns": ["the dog"]}\n')
    return str(path)


def test_it_measures_and_prints_a_line_per_strategy(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--prompts", prompts_file(tmp_path / "p.jsonl"), "-s", "ngram,suffix", "-o", str(tmp_path / "out")]
    assert run("bench", "-m", folder, *BRIEF, *own, "--sampling", "greedy") == 0
    printed = capsys.readouterr().out
    assert [line.split(":")[1].strip() for line in printed.splitlines()[:3]] == ["none", "ngram", "suffix"]
    saved = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert saved["complete"]
    assert saved["provenance"]["model"]["sha256"]
    assert len(saved["samples"]) == 6


def test_it_adds_prompts_that_nobody_can_draft_for(folder: str, tmp_path: Path) -> None:
    own = ["--prompts", prompts_file(tmp_path / "p.jsonl"), "-s", "auto,ngram", "--adversarial", "2"]
    assert run("bench", "-m", folder, *BRIEF, *own, "-o", str(tmp_path / "out"), "--sampling", "greedy") == 0
    saved = json.loads((tmp_path / "out" / "bench.json").read_text())
    pairs = {own["category"]: own["pairs"] for own in saved["router"]}
    assert pairs == {"x": 1, "y": 1, "random tokens": 2, "no repetition": 2, "all": 6}
    assert (
        "`auto` / plain decoding, and `auto` / the best fixed strategy" in (tmp_path / "out" / "bench.md").read_text()
    )


def test_growth_writes_its_curve(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--sizes", "16,48", "-o", str(tmp_path), *SMALL, "--repeats", "1"]
    assert run("bench", "growth", "-m", folder, *own) == 0
    assert "no cache: token 16" in capsys.readouterr().out
    assert json.loads((tmp_path / "growth.json").read_text())["complete"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repeats", "2", "growth"], "--repeats stands before 'growth' and would be ignored"),
        (["--batch", "one"], "--batch takes whole numbers"),
        (["--sampling", "gredy"], "did you mean 'greedy'"),
        (["-s", " , "], "--strategies needs at least one value"),
        (["--sampling", ""], "--sampling needs at least one value"),
        (["--context", "0,-1"], "--context must be at least 0, got -1"),
        (["--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["--batch", "0"], "--batch must be at least 1"),
        (["--num-tokens", "1"], "--num-tokens must be at least 2"),
        (["-s", "ngrm"], "did you mean 'ngram'"),
    ],
)
def test_what_cannot_work_is_refused(
    folder: str, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    group = [*arguments] if "growth" in arguments else ["-m", folder, "-o", str(tmp_path), *arguments]
    assert run("bench", *group) == 2
    assert message in capsys.readouterr().err


def test_a_text_that_is_not_plain_decodings_ends_with_exit_code_1(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(tree: Any, target_tokens: Any) -> tuple[list[int], int]:
        return ([0], target_tokens[1]) if len(tree) else ([], target_tokens[0])

    monkeypatch.setattr("outpace.engine.verify.match", wrong)
    own = ["--prompts", prompts_file(tmp_path / "p.jsonl"), "-s", "lookahead", "-o", str(tmp_path / "out")]
    assert run("bench", "-m", folder, *BRIEF, *own) == 1


def test_ctrl_c_keeps_what_was_measured(folder: str, tmp_path: Path) -> None:
    # The first bandwidth of a group comes after the group before it is kept: a marker in its place tells when.
    hook = "import outpace.measure.bench.alternate as r; f = r.read_bandwidth; n = [0]\n"
    hook += "def g(ops):\n    n[0] += 1\n    n[0] == 4 and print('measured', flush=True)\n    return 1.0\n"
    hook += "r.read_bandwidth = g"
    arguments = ["bench", "-m", folder, *SMALL, "--repeats", "100", "-n", "8", "-s", "ngram", "-o", str(tmp_path)]
    bench = command(*arguments, "--sampling", "greedy", before=hook)
    with subprocess.Popen(bench, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"measured\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    saved = json.loads((tmp_path / "bench.json").read_text())
    assert not saved["complete"]
    assert len(saved["samples"]) >= 6
    assert len(saved["samples"]) % 2 == 0


def test_quality_writes_one_table_of_lossless_and_lossy_rows(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--prompts", prompts_file(tmp_path / "p.jsonl"), "--tasks", "1", "--thresholds", "0.5", "-o", str(tmp_path)]
    model = ["-m", folder, "--ops", "reference", "--threads", "1", "-n", "8"]
    assert run("bench", "quality", *model, *own, "-s", "suffix,block_diffusion", "--student", folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0].partition(folder)[0] for line in lines] == [
        "none", "suffix", "block_diffusion, verified", "draft_model ", "block_diffusion, threshold 0.5",
        "block_diffusion, sliding, threshold 0.5", "", "all numbers, tables and plots",
    ]  # fmt: skip
    assert "LOSSY" in lines[4]
    assert json.loads((tmp_path / "quality.json").read_text())["complete"]
    assert "## Lossy" in (tmp_path / "quality.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["bench", "quality", "--thresholds", "1.5"], "--thresholds takes numbers in [0, 1]"),
        (["bench", "quality", "--thresholds", "high"], "got 'high'"),
        (["bench", "-s", "block_diffusion"], "use `outpace bench quality`"),
        (["bench", "--quality", "--batch", "2"], "--batch would be ignored with --quality"),
    ],
)
def test_quality_refuses_what_it_cannot_use(
    options: list[str], message: str, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*options, "-m", folder, "-o", str(tmp_path)) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_flag_quality_is_the_command_with_its_defaults(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def note(lm: Any, ways: Any, prompts: Any, tasks: Any, design: Any, progress: Any) -> Any:
        asked.append(([way.name for way in ways], [prompt.text for prompt in prompts], len(tasks), design, lm.name))
        return iter(())

    monkeypatch.setattr("outpace.measure.bench.quality.measure_quality", note)
    for start in (["bench", "--quality"], ["bench", "quality"]):
        assert run(*start, "-m", folder, *SMALL[:4], "-o", str(tmp_path)) == 0
    assert asked[0] == asked[1]
    assert asked[0][4] == folder
