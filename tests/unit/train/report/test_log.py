from __future__ import annotations

from pathlib import Path

from outpace.train.report.log import Log


def test_entries_are_lines_that_another_log_reads(tmp_path: Path) -> None:
    log = Log(tmp_path / "log.jsonl")
    for step in (1, 2, 3):
        log.add({"step": step, "loss": 1 / step})
    assert (tmp_path / "log.jsonl").read_text().count("\n") == 3
    assert Log(tmp_path / "log.jsonl").entries == log.entries == [{"step": s, "loss": 1 / s} for s in (1, 2, 3)]


def test_steps_that_are_taken_again_are_written_again(tmp_path: Path) -> None:
    """Training goes on from a checkpoint that is older than the last entry."""
    log = Log(tmp_path / "log.jsonl")
    for step in (1, 2, 3, 4):
        log.add({"step": step})
    log = Log(tmp_path / "log.jsonl")
    log.add({"step": 3, "again": True})
    assert Log(tmp_path / "log.jsonl").entries == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_a_line_that_was_cut_by_a_kill_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"st')
    log = Log(path)
    log.add({"step": 2})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
