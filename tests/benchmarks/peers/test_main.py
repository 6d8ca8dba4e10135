"""The command: `python -m benchmarks.peers`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.peers.__main__ import _Lines, main
from outpace.api import LanguageModel


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["-n", "1"], "-n/--num-tokens: must be a whole number of at least 2, got '1'"),
        (["--repeats", "0"], "--repeats: must be a whole number of at least 1"),
        (["--batch", "two"], "--batch: must be a whole number of at least 1, got 'two'"),
        (["--context", "-1"], "--context"),
        (["-s", " , "], "-s/--strategies: needs at least one name, comma-separated"),
        (["--prompts", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_what_measures_nothing_is_refused_and_names_its_option(
    wrong: list[str], message: str, venv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as end:
        main(["--venv", str(venv), "-o", str(out), *wrong])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_the_command_writes_its_report_and_prints_a_line_per_variant(
    venv: Path, lm: LanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.jsonl").write_text('{"category": "x", "turns": ["the cat sat"]}\n')
    main(["--venv", str(venv), "-m", str(lm.path), "--ops", "reference", "--threads", "1", "-n", "6", "--repeats", "1",
          "--prompts", str(tmp_path / "p.jsonl"), "-o", str(tmp_path / "out"), "-s", "ngram", "--context", "5",
          "--neighbour-pairs", "0"])  # fmt: skip
    saved = json.loads((tmp_path / "out" / "peers-context-5.json").read_text())
    assert saved["complete"]
    assert saved["neighbours"] is None
    variants = {(row["engine"], row["variant"]) for row in saved["summary"]}
    assert variants >= {("outpace", "none"), ("outpace", "ngram"), ("llama_cpp", "plain"), ("llama_cpp", "lookup")}
    printed = capsys.readouterr()
    assert "llama_cpp, plain: " in printed.out
    assert "starting llama_cpp, plain" in printed.err


def test_progress_is_a_line_now_and_then_with_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    lines = _Lines()
    for done in range(100):
        lines.progress(done, 100, "working")
    assert capsys.readouterr().err.splitlines() == ["0 of 100: working"]
    lines._last -= 60
    lines.progress(50, 100, "half")
    assert re.fullmatch(r"50 of 100, about \d+ s left: half\n", capsys.readouterr().err)
