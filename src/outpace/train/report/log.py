"""The log of a training: one JSON object a step, in a file that a run which goes on continues without a seam."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from outpace.measure.output_file import save


class Log:
    """Entries by step. After a kill, training goes on from its last checkpoint: later entries are written again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.entries: list[dict[str, Any]] = []
        if path.exists():
            whole = path.read_text(encoding="utf-8")
            *lines, rest = whole.split("\n")
            self.entries = [json.loads(line) for line in lines]
            if rest:  # killed in the middle of a line
                self._rewrite()

    def add(self, entry: dict[str, Any]) -> None:
        """Append an entry; those of its step and later ones, from before an interruption, are taken back."""
        if self.entries and entry["step"] <= self.entries[-1]["step"]:
            self.entries = [old for old in self.entries if old["step"] < entry["step"]]
            self._rewrite()
        self.entries.append(entry)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(entry))

    def _rewrite(self) -> None:
        save(self._path, "".join(map(_line, self.entries)))


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry) + "\n"
