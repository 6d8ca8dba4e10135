"""Adapt a network: steps over the text, checkpoints that go on exactly, the best result by what it brings."""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from outpace.errors import OutpaceError, UsageError
from outpace.train.adapt.blocks import make_blocks
from outpace.train.adapt.export import read_result, write_result
from outpace.train.adapt.learner import Learner
from outpace.train.adapt.measure import Measured, measure, measured_of
from outpace.train.adapt.objectives import Losses, loss_of
from outpace.train.adapt.settings import AdaptSettings
from outpace.train.schedule import factor
from outpace.train.state import RunState, load_state, save_state
from outpace.train.target import TargetIdentity
from outpace.train.text.corpus import Batches, Conversation, digest_of

STATE = "state.pt"
_RESULTS = {"lora": "adapter.gguf", "full": "weights.pt"}


@dataclass(frozen=True, slots=True)
class AdaptReport:
    """What a step did. seconds: of training so far. positions: slots that were learned in this step.

    accuracy: how often the text's token was the first choice. clean: the autoregressive loss, where there is one.
    measured: on held-out text, where the run has just measured itself.
    """

    step: int
    seconds: float
    done: float
    loss: float
    clean: float | None
    accuracy: float
    learning_rate: float
    positions: int
    measured: Measured | None = None


@dataclass(frozen=True, slots=True)
class Adapted:
    """What a run brought. path: of the best result's file. before, measured: of the untrained network, and of that."""

    path: Path
    before: Measured
    measured: Measured
    steps: int
    seconds: float


def adapt(
    learner: Learner,
    settings: AdaptSettings,
    text: Sequence[Conversation],
    held_out: Sequence[Conversation],
    ends: Collection[int],
    identity: TargetIdentity,
    folder: Path,
    start: Path | None = None,
    report: Callable[[AdaptReport], None] = lambda step: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Adapted:
    """Adapt a fresh learner in a folder, or go on with the run that is there; return its outcome.

    ends: tokens that end a text. start: an adapter's file to begin with; it is measured first, so that the outcome is
    never worse on `held_out`. On the CPU a run that was stopped at any time, even by kill -9, ends with the bits of
    one that was not, if its end is given in steps. Raises UsageError for what cannot work, OutpaceError where the loss
    is no number any more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(learner, settings, text, held_out, ends, identity, folder, start, clock)
    run.begin()
    while not run.is_over:
        report(run.step())
    return run.finish()


class _Run:
    """A run under way: the learner and its optimiser, and the state that is saved."""

    def __init__(
        self,
        learner: Learner,
        settings: AdaptSettings,
        text: Sequence[Conversation],
        held_out: Sequence[Conversation],
        ends: Collection[int],
        identity: TargetIdentity,
        folder: Path,
        start: Path | None,
        clock: Callable[[], float],
    ) -> None:
        self._learner, self._settings, self._text, self._held_out = learner, settings, text, held_out
        self._ends, self._identity, self._folder, self._start, self._clock = ends, identity, folder, start, clock
        self._batches = Batches(text, settings.tokens_per_batch, settings.seed)
        self._optimiser = torch.optim.AdamW(
            list(learner.parameters.values()), lr=settings.peak, betas=(0.9, 0.95), weight_decay=0.0
        )
        self._result = _RESULTS[settings.weights]
        self._saved_at = clock()
        self._state: RunState

    # Beginning.

    def begin(self) -> None:
        """Take up the run in the folder, or start one with a measurement of the network as it is."""
        made_with = {
            "kind": self._settings.kind,
            "target": self._identity.fingerprint,
            "text": digest_of(self._text),
            "start": None if self._start is None else hashlib.sha256(self._start.read_bytes()).hexdigest(),
            **self._settings.as_dict(),
        }
        path = self._folder / STATE
        if path.exists():
            self._state = load_state(path, made_with)
            self._learner.load(self._state.network)
            self._optimiser.load_state_dict(self._state.optimisers[0])
            return
        self._state = RunState(made_with, {}, {}, [])
        if self._start is not None:
            self._learner.load(read_result(self._start))
        measured = self._measure()
        if self._start is not None:
            shutil.copyfile(self._start, self._candidate)
            self._state.best = (self._candidate.name, measured.score)
        self._keep(measured)
        self._save()

    @property
    def _candidate(self) -> Path:
        """Where the result of the current step goes, until it is found to be the best or not."""
        return self._folder / f"step-{self._state.step:07}{Path(self._result).suffix}"

    # Steps.

    @property
    def is_over(self) -> bool:
        """Whether the run has reached its end: a state at the end is only saved when it has been measured."""
        return self._done >= 1

    @property
    def _done(self) -> float:
        return self._settings.done(self._state.step, self._state.seconds)

    def step(self) -> AdaptReport:
        """Take a step, measure and save where it is time."""
        before, state = self._clock(), self._state
        found = self._learn()
        state.step += 1
        state.seconds += self._clock() - before
        found = replace(found, seconds=state.seconds)
        due = int(self._done * self._settings.evaluations + 1e-9)
        if state.num_evaluated < due:
            state.num_evaluated = due
            found = replace(found, measured=self._consider())
            self._save()
        elif self._clock() - self._saved_at >= self._settings.save_every_s:
            self._save()
        return found

    def _learn(self) -> AdaptReport:
        state, settings, learner = self._state, self._settings, self._learner
        done = self._done
        rate = settings.peak * factor(state.step, done, settings.warmup_steps)
        rng = np.random.default_rng([settings.seed, 1, state.step])
        chosen = [self._text[i] for i in self._batches.batch(state.step)]
        blocks = make_blocks(chosen, settings.block, settings.shift, self._ends, learner.device, rng)
        losses = None if blocks is None else loss_of(learner, blocks, settings, rng)
        if losses is None:
            return AdaptReport(state.step + 1, state.seconds, done, math.nan, None, math.nan, rate, 0)
        self._descend(losses, rate)
        return AdaptReport(
            state.step + 1,
            state.seconds,
            done,
            float(losses.total.detach()),
            None if losses.clean is None else float(losses.clean),
            float(losses.accuracy),
            rate,
            losses.num_learned,
        )

    def _descend(self, losses: Losses, rate: float) -> None:
        losses.total.backward()  # type: ignore[no-untyped-call]
        total = float(losses.total.detach())
        if not math.isfinite(total):
            raise OutpaceError(
                f"the loss of step {self._state.step + 1} is {total}: training has diverged. Choose a lower learning "
                f"rate (it is {self._settings.peak:g}) and another folder"
            )
        nn.utils.clip_grad_norm_(list(self._learner.parameters.values()), self._settings.clip)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)

    # Measuring and keeping.

    def _consider(self) -> Measured:
        """Write what has been learned, measure it as it was written, and keep it if it is the best so far."""
        state = self._state
        path = self._candidate
        write_result(self._learner, self._settings, self._identity, path)
        with self._as_written(path):
            measured = self._measure()
        if state.best is None or measured.score > state.best[1]:
            state.best = (path.name, measured.score)
        self._keep(measured)
        return measured

    @contextmanager
    def _as_written(self, path: Path) -> Iterator[None]:
        """Let the learner have the numbers of a file for a while."""
        own = {name: x.clone() for name, x in self._learner.state().items()}
        self._learner.load(read_result(path))
        try:
            yield
        finally:
            self._learner.load(own)

    def _measure(self) -> Measured:
        measured = measure(self._learner, self._held_out, self._ends, self._settings)
        if measured is None:
            raise UsageError(
                f"there is no held-out text with a block of {self._settings.block} tokens: hold out more, give longer "
                "text, or choose smaller blocks"
            )
        return measured

    def _keep(self, measured: Measured) -> None:
        self._state.log.append({"step": self._state.step, "seconds": self._state.seconds, **asdict(measured)})

    def _save(self) -> None:
        """Write the checkpoint; results that it does not name are in nobody's way any more."""
        state = self._state
        state.network = dict(self._learner.state())
        state.optimisers = [self._optimiser.state_dict()]
        save_state(self._folder / STATE, state)
        for path in self._folder.glob("step-*"):
            if state.best is None or path.name != state.best[0]:
                path.unlink()
        self._saved_at = self._clock()

    def finish(self) -> Adapted:
        """Return the outcome; the best result now has its own name too."""
        state = self._state
        assert state.best is not None
        path = self._folder / self._result
        new = path.with_suffix(".new")
        shutil.copyfile(self._folder / state.best[0], new)
        new.replace(path)
        best = max(state.log[self._start is None :], key=lambda entry: float(entry["score"]))
        return Adapted(path, measured_of(state.log[0]), measured_of(best), state.step, state.seconds)
