"""What a run has done so far, in one small file: finished stages, their seconds, and what they say for the card.

The budget is shared by these parts of the whole. What a stage may take is its share, among the stages that are still
to come, of what is left; so one that takes less leaves the rest to those after it. It may always take half of its share
of the whole: a slow stage must not leave training without time, so a budget can be overdrawn.

    prompts 10 %    held-out 5 %    responses 30 %    training 45 %    check 10 %
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from outpace.errors import UsageError
from outpace.measure.output_file import save

FILE = "run.json"
SCHEMA = 1
SHARES = {"prompts": 0.10, "held-out": 0.05, "responses": 0.30, "training": 0.45, "check": 0.10}


class Ledger:
    """Stages by name, in the order of `SHARES`; every change is on disk when the call returns."""

    def __init__(self, path: Path, made_with: Mapping[str, Any], clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._made_with = dict(made_with)
        self._stages: dict[str, dict[str, Any]] = {}

    @classmethod
    def open(
        cls,
        folder: Path,
        made_with: Mapping[str, Any],
        clock: Callable[[], float] = time.monotonic,
        only_for_text: Collection[str] = (),
    ) -> Ledger:
        """Return the ledger of a folder, a new one where it has none.

        made_with: plain JSON values. only_for_text: names of those that may differ once all text is written, so that
        another machine may train on it. Raises UsageError where the folder's run was made with others, naming them.
        """
        ledger = cls(folder / FILE, made_with, clock)
        try:
            found = json.loads(ledger._path.read_text(encoding="utf-8"))
            if found["schema"] != SCHEMA or not isinstance(found["stages"], dict):
                raise ValueError("it is of another schema")
            old = dict(found["made_with"])
        except FileNotFoundError:
            ledger._save()
            return ledger
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{ledger._path}: is damaged ({error}): remove it, or give another --out") from error
        ledger._stages = found["stages"]
        if ledger.is_done("held-out") and ledger.is_done("responses"):
            ledger._made_with |= {name: old[name] for name in only_for_text if name in old}
        _refuse_others(folder, old, ledger._made_with)
        return ledger

    def is_done(self, stage: str) -> bool:
        """Whether a stage is finished."""
        return bool(self._stage(stage).get("done", False))

    def facts(self, stage: str) -> dict[str, Any]:
        """Return what a stage has noted."""
        return dict(self._stage(stage).get("facts", {}))

    def seconds(self, stage: str) -> float:
        """Return the seconds that a stage has taken so far, those of interrupted runs included."""
        return float(self._stage(stage).get("seconds", 0.0))

    def note(self, stage: str, **facts: Any) -> None:
        """Add what a stage has to say."""
        own = self._stage(stage)
        self._stages[stage] = own | {"facts": own.get("facts", {}) | facts}
        self._save()

    def begin(self, stage: str, budget: float, last: str | None = None) -> Timer:
        """Start a stage's clock, or go on with it. budget: seconds of the run up to stage `last` (None: of all)."""
        allowed = self.facts(stage).get("allowed")
        if allowed is None:
            names = list(SHARES)
            todo = [name for name in names[: names.index(last or names[-1]) + 1] if not self.is_done(name)]
            spent = sum(map(self.seconds, SHARES))
            left = (budget - spent) * SHARES[stage] / sum(SHARES[name] for name in todo)
            allowed = max(left, budget * SHARES[stage] / 2)
            self.note(stage, allowed=allowed)
        return Timer(self, stage, allowed)

    def finish(self, stage: str, **facts: Any) -> None:
        """Note that a stage is done."""
        self._stages[stage] = self._stage(stage) | {"done": True}
        self.note(stage, **facts)

    def add_seconds(self, stage: str, seconds: float) -> None:
        """Count time that a stage has taken."""
        self._stages[stage] = self._stage(stage) | {"seconds": self.seconds(stage) + seconds}
        self._save()

    def now(self) -> float:
        """Return the clock's seconds."""
        return self._clock()

    def _stage(self, name: str) -> dict[str, Any]:
        return self._stages.get(name, {})

    def _save(self) -> None:
        value = {"schema": SCHEMA, "made_with": self._made_with, "stages": self._stages}
        save(self._path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


class Timer:
    """A stage's clock: what it may take in all, over interruptions."""

    def __init__(self, ledger: Ledger, stage: str, allowed: float) -> None:
        self._ledger, self._stage, self.allowed = ledger, stage, allowed
        self._started = ledger.now()

    @property
    def taken(self) -> float:
        """Seconds of the stage, earlier runs included."""
        return self._ledger.seconds(self._stage) + self._ledger.now() - self._started

    @property
    def is_left(self) -> bool:
        """Whether the stage may go on."""
        return self.taken < self.allowed

    def keep(self, at_least: float = 0.0) -> None:
        """Write the seconds down, if there are so many: what comes after a kill counts from here."""
        now = self._ledger.now()
        if now - self._started < at_least:
            return
        self._ledger.add_seconds(self._stage, now - self._started)
        self._started = now


def _refuse_others(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise UsageError, with every difference, if a run was made with other settings."""
    names = [*old, *(name for name in new if name not in old)]
    differences = [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}" for name in names if old.get(name) != new.get(name)
    ]
    if differences:
        raise UsageError(
            f"{folder} holds a run with other settings ({'; '.join(differences)}): repeat them to go on with it, or "
            "give another --out"
        )
