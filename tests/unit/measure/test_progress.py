from __future__ import annotations

from outpace.measure.progress import Work


def test_a_piece_counts_as_done_when_the_next_one_begins() -> None:
    reports: list[tuple[int, int, str]] = []
    work = Work(10, lambda *report: reports.append(report))
    work.begin(7, "long")
    work.begin(3, "short")
    work.finish()
    assert reports == [(0, 10, "long"), (7, 10, "short"), (10, 10, "")]


def test_nobody_has_to_listen() -> None:
    work = Work(1, None)
    work.begin(1, "all")
    work.finish()
    assert work.done == 1
