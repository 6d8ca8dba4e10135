from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from outpace import cli
from outpace.measure.certify import Certificate
from tests.unit.measure.certify.conftest import PROMPTS, SMALL


def _exit_code(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    return int(end.value.code or 0)


def test_the_command_writes_both_reports_and_prints_the_verdict(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("outpace.measure.certify.QUICK", SMALL)
    path = tmp_path / "proof.json"
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"category": p.category, "turns": [p.text]}) + "\n" for p in PROMPTS))
    arguments = ["certify", "-m", str(folder), "--quick", "--prompts", str(prompts), "-o", str(path), "--threads", "1"]
    assert _exit_code(arguments) == 0
    assert capsys.readouterr().out.startswith("PASS")
    assert json.loads(path.read_text())["prompts"] == [p.text for p in PROMPTS]
    assert (tmp_path / "proof.md").read_text().startswith("# Certificate")


def test_a_certificate_that_is_not_a_pass_ends_with_exit_code_1(
    certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    void = replace(certificate, wrong_token=None)
    monkeypatch.setattr("outpace.measure.certify.certify", lambda *arguments, **options: void)
    assert _exit_code(["certify", "-m", "nothing-is-loaded", "-o", str(tmp_path / "c.json")]) == 1
    assert _exit_code(["certify", "-o", str(tmp_path / "c.txt")]) == 2
