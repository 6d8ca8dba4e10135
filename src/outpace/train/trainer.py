"""The loop of every training: steps over the text, checkpoints that go on exactly, the best result by its measure.

What the batch is, what the loss is, what is measured and what is saved is the objective's (`objective.py`).
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor, nn

from outpace.errors import OutpaceError
from outpace.train.feeding import feed
from outpace.train.objective import M, Objective, P, StepLosses
from outpace.train.schedule import factor
from outpace.train.state import RunState, load_state, save_state
from outpace.train.text.corpus import Batches, digest_of

STATE = "state.pt"
_STEPS_READ = 16  # whose losses are read from an accelerator at once: each reading waits for all work to be done


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step did. seconds: of training so far. positions: that were learned at; 0 if there was nothing to learn.

    loss: the whole, whose gradient was taken (None without positions). learning_rate: of the matrices. parts: what the
    objective tells beside it. measured: on held-out text, where the run has just measured itself, with its "score".
    """

    step: int
    seconds: float
    done: float
    loss: float | None
    learning_rate: float
    positions: int
    parts: Mapping[str, float | list[float]] = field(default_factory=dict)
    measured: Mapping[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the step's line of the log, the parts among the other values."""
        values = {own.name: getattr(self, own.name) for own in fields(self)}
        return {**values.pop("parts"), **values}

    def in_words(self) -> str:
        """Return the step in a line of progress."""
        loss = "nothing to learn" if self.loss is None else f"loss {self.loss:.3f}"
        score = "" if self.measured is None else f", score {self.measured['score']:.2f}"
        return f"step {self.step}, {loss}{score}"


@dataclass(frozen=True, slots=True)
class Outcome(Generic[M]):
    """What a run brought. path: of the best result's file; measured, score: of that. log: an entry an evaluation.

    before, score_before: of what the run began with, if that was measured.
    """

    path: Path
    measured: M
    score: float
    before: M | None
    score_before: float | None
    steps: int
    seconds: float
    log: list[dict[str, Any]]


def train(
    objective: Objective[P, M],
    folder: Path,
    report: Callable[[StepReport], None] = lambda step: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Outcome[M]:
    """Train in a folder, or go on with the run that is there; return its outcome.

    A result that the run begins with is measured first, so that the outcome is never worse on held-out text. On the CPU
    a run that was stopped at any time, even by kill -9, ends with the bits of one that was not, if its end is given in
    steps. Raises UsageError for what cannot work, OutpaceError where the loss is no number any more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(objective, folder, clock)
    run.begin()
    with feed(run.plan, run.num_steps, is_ahead=objective.is_accelerated) as plans:
        while not run.is_over:
            for step in run.step(plans):
                report(step)
    return run.finish()


@dataclass(frozen=True, slots=True)
class _Taken:
    """A step that was taken. found: loss, norm of the gradients, and the parts, on the device; sizes: of the parts."""

    report: StepReport
    found: Tensor | None = None
    sizes: Mapping[str, int | None] = field(default_factory=dict)  # None: a scalar


class _Run(Generic[P, M]):
    """A run under way: the objective and its optimisers, and the state that is saved."""

    def __init__(self, objective: Objective[P, M], folder: Path, clock: Callable[[], float]) -> None:
        self._objective, self._settings = objective, objective.settings
        self._folder, self._clock = folder, clock
        self._batches = Batches(objective.text, self._settings.tokens_per_batch, self._settings.seed)
        self._saved_at = clock()
        self._taken: list[_Taken] = []
        self._state: RunState
        self._optimisers: list[torch.optim.Optimizer]

    # Beginning.

    def begin(self) -> None:
        """Take up the run in the folder, or start one; what it begins with is measured first, if it can be."""
        objective, path = self._objective, self._folder / STATE
        made_with = objective.made_with() | {"text": digest_of(objective.text)} | self._settings.as_dict()
        if path.exists():
            self._state = load_state(path, made_with)
            objective.load(self._state.network, self._state.numbers)
            self._optimisers = objective.optimisers()
            for optimiser, saved in zip(self._optimisers, self._state.optimisers, strict=True):
                optimiser.load_state_dict(saved)
            return
        objective.begin()
        self._optimisers = objective.optimisers()
        self._state = RunState(made_with, objective.numbers(), {}, [])
        if objective.beginning != "unmeasured":
            objective.write_first(self._candidate)
            self._consider(may_win=objective.beginning == "kept")
            self._save()

    @property
    def _candidate(self) -> Path:
        """Where the result of the current step goes, until it is found to be the best or not."""
        return self._folder / f"step-{self._state.step:07}{Path(self._objective.result).suffix}"

    # Steps.

    @property
    def is_over(self) -> bool:
        """Whether the run has reached its end: a state at the end is only saved when it has been measured."""
        return self._done >= 1

    @property
    def _done(self) -> float:
        return self._settings.done(self._state.step, self._state.seconds)

    @property
    def num_steps(self) -> int:
        """How many steps have been taken."""
        return self._state.step

    def plan(self, step: int) -> P | None:
        """Return the plan of a step: a function of (text, seed, step)."""
        return self._objective.plan(step, self._batches.batch(step))

    def step(self, plans: Iterator[P | None]) -> list[StepReport]:
        """Take a step, measure and save where it is time; return the steps whose losses are known by now."""
        before, state = self._clock(), self._state
        taken = self._learn(next(plans))
        state.step += 1
        state.seconds += self._clock() - before
        self._taken.append(replace(taken, report=replace(taken.report, seconds=state.seconds)))
        due = int(self._done * self._settings.evaluations + 1e-9)
        is_due = state.num_evaluated < due
        is_to_save = self._clock() - self._saved_at >= self._settings.save_every_s
        if not (is_due or is_to_save or len(self._taken) >= (_STEPS_READ if self._objective.is_accelerated else 1)):
            return []
        known = self._known()
        if is_due:
            self._objective.write(self._candidate)
            state.num_evaluated = due
            known[-1] = replace(known[-1], measured=self._consider())
        if is_due or is_to_save:
            self._save()
        return known

    def _learn(self, plan: P | None) -> _Taken:
        state, objective = self._state, self._objective
        done = self._done
        self._set_rates(done)
        rate = float(self._optimisers[0].param_groups[0]["lr"])
        report = StepReport(state.step + 1, state.seconds, done, None, rate, 0)
        losses = None if plan is None else objective.losses(plan, done)
        if losses is None:
            return _Taken(report)
        losses.total.backward()  # type: ignore[no-untyped-call]
        slope = nn.utils.clip_grad_norm_(objective.parameters(), self._settings.clip)
        for optimiser in self._optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return _taken(replace(report, positions=losses.positions), losses, slope)

    def _set_rates(self, done: float) -> None:
        rate = self._objective.peak * factor(self._state.step, done, self._settings.warmup_steps)
        for optimiser, pace in zip(self._optimisers, self._objective.paces(done), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = group["base_rate"] * (rate * pace)

    def _known(self) -> list[StepReport]:
        """Return the steps that were taken since the last call, their losses read from the device in one piece."""
        taken, self._taken = self._taken, []
        found = [own.found for own in taken if own.found is not None]
        numbers = iter(torch.cat(found).tolist() if found else [])
        return [own.report if own.found is None else self._told(own, numbers) for own in taken]

    def _told(self, taken: _Taken, numbers: Iterator[float]) -> StepReport:
        """Return a step with its numbers, in the order of `_Taken.found`."""
        total, slope = next(numbers), next(numbers)
        if not math.isfinite(total + slope):
            rate = self._optimisers[0].param_groups[0]["base_rate"] * self._objective.peak
            raise OutpaceError(
                f"the loss of step {taken.report.step} is {total}, the norm of its gradients {slope}: training has "
                f"diverged. Choose a lower learning rate (its peak is {rate:g}) and another folder"
            )
        parts = {
            name: next(numbers) if size is None else list(islice(numbers, size)) for name, size in taken.sizes.items()
        }
        return replace(taken.report, loss=total, parts=parts)

    # Measuring and keeping.

    def _consider(self, *, may_win: bool = True) -> dict[str, Any]:
        """Measure the candidate on held-out text; it is the best so far, if it may be and is."""
        state = self._state
        found = self._objective.measure(self._candidate)
        measured: dict[str, Any] = asdict(found) | {"score": self._objective.score(found)}
        if may_win and (state.best is None or measured["score"] > state.best[1]):
            state.best = (self._candidate.name, measured["score"])
        state.log.append({"step": state.step, "seconds": state.seconds, **measured})
        return measured

    def _save(self) -> None:
        """Write the checkpoint; results that it does not name are in nobody's way any more."""
        state = self._state
        state.network = self._objective.state()
        state.optimisers = [optimiser.state_dict() for optimiser in self._optimisers]
        save_state(self._folder / STATE, state)
        best = [] if state.best is None else self._files(state.best[0])
        for path in self._folder.glob("step-*"):
            if path not in best:
                path.unlink()
        self._saved_at = self._clock()

    def _files(self, result: str) -> list[Path]:
        """Return the files of a result: its own, and those beside it."""
        own, stem = self._folder / result, result.partition(".")[0]
        return [own, *(path for path in self._folder.glob(f"{stem}.*") if path != own and path.suffix != ".new")]

    def finish(self) -> Outcome[M]:
        """Return the outcome; the best result now has its own name too."""
        state, objective = self._state, self._objective
        assert state.best is not None
        stem, final = state.best[0].partition(".")[0], objective.result.partition(".")[0]
        for own in self._files(state.best[0]):
            kept = own.with_name(final + own.name.removeprefix(stem))
            new = kept.with_name(f"{kept.name}.new")
            shutil.copyfile(own, new)
            new.replace(kept)
        best = next(entry for entry in state.log if f"step-{entry['step']:07}" == stem)
        first = None if objective.beginning == "unmeasured" else state.log[0]
        path = self._folder / objective.result
        return Outcome(
            path,
            objective.measure_in_full(path, objective.measured_of(best)),
            state.best[1],
            None if first is None else objective.measured_of(first),
            None if first is None else first["score"],
            state.step,
            state.seconds,
            state.log,
        )


def _taken(report: StepReport, losses: StepLosses, slope: Tensor) -> _Taken:
    sizes = {name: len(own) if own.ndim else None for name, own in losses.parts.items()}
    found = [losses.total.detach(), slope, *losses.parts.values()]
    return _Taken(report, torch.cat([own.reshape(-1) for own in found]), sizes)
