from __future__ import annotations

from outpace.measure.markdown import table


def test_cells_cannot_break_a_table() -> None:
    assert table(("a", "b"), [("x|y", 1)]).splitlines() == ["| a | b |", "| --- | --- |", "| x\\|y | 1 |"]
