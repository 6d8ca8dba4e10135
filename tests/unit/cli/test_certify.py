from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from outpace.measure.certify import Certificate
from tests.unit.cli.running import run
from tests.unit.measure.certify.conftest import PROMPTS, SMALL, certificate, opener, own_costs, reports

__all__ = ["certificate", "opener", "own_costs", "reports"]  # fixtures


def test_the_command_writes_both_reports_and_prints_the_verdict(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("outpace.measure.certify.QUICK", SMALL)
    path = tmp_path / "proof.json"
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"category": p.category, "turns": [p.text]}) + "\n" for p in PROMPTS))
    arguments = ["certify", "-m", folder, "--quick", "--prompts", str(prompts), "-o", str(path), "--threads", "1"]
    assert run(*arguments) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("PASS")
    assert "% done in 0:0" in printed.err
    assert json.loads(path.read_text())["prompts"] == [p.text for p in PROMPTS]
    assert (tmp_path / "proof.md").read_text().startswith("# Certificate")


@pytest.fixture
def proven(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> Certificate:
    """A certificate that is there without any work."""
    monkeypatch.setattr("outpace.measure.certify.certify", lambda *arguments, **options: certificate)
    return certificate


def test_a_certificate_that_is_not_a_pass_ends_with_exit_code_1(
    certificate: Certificate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    void = replace(certificate, wrong_token=None)
    monkeypatch.setattr("outpace.measure.certify.certify", lambda *arguments, **options: void)
    assert run("certify", "-m", "nothing-is-loaded", "-o", str(tmp_path / "c.json")) == 1


@pytest.mark.parametrize("name", ["c.txt", "no/c.json", "c"])
def test_an_output_that_cannot_be_is_refused_before_the_work(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("outpace.measure.certify.certify", None)
    assert run("certify", "-o", str(tmp_path / name)) == 2
    assert name in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_a_device_gets_the_numbers_alone(proven: Certificate, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/null")
    assert run("certify", "-o", str(tmp_path / "link")) == 0
    assert os.listdir(tmp_path) == ["link"]
    assert (tmp_path / "link").is_symlink()


def test_a_full_disk_does_not_cost_the_verdict(proven: Certificate, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("certify", "-o", "/dev/full") == 2
    printed = capsys.readouterr()
    assert printed.out.startswith("PASS")
    assert printed.err == "error: /dev/full: No space left on device\n"
