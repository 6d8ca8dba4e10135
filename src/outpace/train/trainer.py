"""Train a drafter: steps over the text, checkpoints that go on exactly, the best drafter by simulation."""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from outpace.errors import OutpaceError, UsageError, one_of
from outpace.train.batch import make_batch
from outpace.train.build import NETWORKS, build_network, fresh_network
from outpace.train.export import export, read_network
from outpace.train.losses import draft_loss, target_probs
from outpace.train.muon import Muon
from outpace.train.networks.network import DraftNetwork
from outpace.train.schedule import factor
from outpace.train.settings import TrainSettings
from outpace.train.simulate import BUDGETS, SCORED, Simulation, simulate
from outpace.train.state import RunState, load_state, save_state
from outpace.train.target import FrozenTarget
from outpace.train.text.corpus import Batches, Conversation, digest_of
from outpace.weights.trained import Entries

STATE, RESULT = "state.pt", "drafter.gguf"
_LISTS = ("head", "masks")  # matrices that are lists of vectors: nothing is multiplied by their columns together
_CONTINUED_PEAK = 0.3  # of the recipe's learning rates: more would first undo what the drafter knows


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step did. seconds: of training so far. positions: with labels, in this step.

    simulated: tokens per step on held-out text, where the run has just measured itself.
    """

    step: int
    seconds: float
    done: float
    loss: float
    loss_by_depth: tuple[float, ...]
    accuracy_by_depth: tuple[float, ...]
    learning_rate: float
    positions: int
    simulated: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run brought. path: of the best drafter's file. started_at: the score that `start` had, if one was given.

    tokens_per_step: simulated, of that file on the held-out text. log: one entry for each evaluation.
    """

    path: Path
    tokens_per_step: Simulation
    score: float
    started_at: float | None
    steps: int
    seconds: float
    log: list[dict[str, Any]]


def train(
    kind: str,
    settings: TrainSettings,
    text: Sequence[Conversation],
    held_out: Sequence[Conversation],
    target: FrozenTarget,
    folder: Path,
    start: Path | None = None,
    report: Callable[[StepReport], None] = lambda step: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Outcome:
    """Train a drafter of some kind in a folder, or go on with the run that is there; return its outcome.

    start: a drafter's file to begin with; it is measured first, so that the outcome is never worse on `held_out`.
    On the CPU a run that was stopped at any time, even by kill -9, ends with the bits of one that was not, if its end
    is given in steps. Raises UsageError for what cannot work, OutpaceError where the loss is no number any more.
    """
    one_of("kind", kind, NETWORKS)
    if not any(len(own.tokens) >= own.num_prompt + 2 for own in held_out):
        raise UsageError("there is no held-out text to measure drafters on: hold out more, or give more text")
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(kind, settings, text, held_out, target, folder, start, clock)
    run.begin()
    while not run.is_over:
        report(run.step())
    return run.finish()


class _Run:
    """A run under way: the network and its optimisers, and the state that is saved."""

    def __init__(
        self,
        kind: str,
        settings: TrainSettings,
        text: Sequence[Conversation],
        held_out: Sequence[Conversation],
        target: FrozenTarget,
        folder: Path,
        start: Path | None,
        clock: Callable[[], float],
    ) -> None:
        self._kind, self._settings, self._text, self._held_out = kind, settings, text, held_out
        self._target, self._folder, self._start, self._clock = target, folder, start, clock
        self._batches = Batches(text, settings.tokens_per_batch, settings.seed)
        self._peak = settings.peak or (1.0 if start is None else _CONTINUED_PEAK)
        on_cpu = target.device.type == "cpu"
        self._dtype = torch.float32 if on_cpu else torch.bfloat16
        self._saved_at = clock()
        self._state: RunState

    # Beginning.

    def begin(self) -> None:
        """Take up the run in the folder, or start one; a start's own drafter is measured first."""
        made_with = {
            "kind": self._kind,
            "target": self._target.identity.fingerprint,
            "text": digest_of(self._text),
            "start": None if self._start is None else hashlib.sha256(self._start.read_bytes()).hexdigest(),
            **self._settings.as_dict(),
        }
        path = self._folder / STATE
        if path.exists():
            self._state = load_state(path, made_with)
            self._network = build_network(
                self._kind, Entries(self._state.numbers, str(path)), self._state.network, self._target
            )
            self._optimisers = _optimisers(self._network, self._settings)
            for optimiser, saved in zip(self._optimisers, self._state.optimisers, strict=True):
                optimiser.load_state_dict(saved)
        elif self._start is None:
            self._network = fresh_network(self._kind, self._target, self._text, self._settings)
            self._begin_with(made_with)
        else:
            self._network = read_network(self._start, self._kind, self._target)
            self._begin_with(made_with)
            self._consider(self._start)
            self._save()
        self._head_tokens = torch.tensor(self._network.head_tokens, device=self._target.device)

    def _begin_with(self, made_with: dict[str, Any]) -> None:
        self._optimisers = _optimisers(self._network, self._settings)
        self._state = RunState(made_with, self._network.numbers(), {}, [])

    # Steps.

    @property
    def is_over(self) -> bool:
        """Whether the run has reached its end: a state at the end is only saved when it has been measured."""
        return self._done >= 1

    @property
    def _done(self) -> float:
        return self._settings.done(self._state.step, self._state.seconds)

    def step(self) -> StepReport:
        """Take a step, measure and save where it is time."""
        before, state = self._clock(), self._state
        found = self._learn()
        state.step += 1
        state.seconds += self._clock() - before
        found = replace(found, seconds=state.seconds)
        due = int(self._done * self._settings.evaluations + 1e-9)
        if state.num_evaluated < due:
            candidate = self._folder / f"step-{state.step:07}.gguf"
            self._network.calibrate(self._target, self._held_out)
            export(self._network, self._target.identity, candidate, self._settings.format)
            state.num_evaluated = due
            found = replace(found, simulated=self._consider(candidate))
            self._save()
        elif self._clock() - self._saved_at >= self._settings.save_every_s:
            self._save()
        return found

    def _learn(self) -> StepReport:
        state, settings, network = self._state, self._settings, self._network
        done = self._done
        rate = self._peak * factor(state.step, done, settings.warmup_steps)
        chosen = [self._text[i] for i in self._batches.batch(state.step)]
        rng = np.random.default_rng([settings.seed, 1, state.step]) if network.share < 1 else None
        batch = make_batch(chosen, self._target, network.taps, network.num_depths, rng, network.share)
        if batch is None:
            return StepReport(state.step + 1, state.seconds, done, math.nan, (), (), rate, 0)
        probs = target_probs(self._target, batch.final, self._head_tokens, self._dtype)
        device = self._target.device.type
        with nullcontext() if device == "cpu" else torch.autocast(device, self._dtype):
            losses = draft_loss(network, batch, probs, self._head_tokens)
        losses.total.backward()  # type: ignore[no-untyped-call]
        total = float(losses.total.detach())
        if not math.isfinite(total):
            raise OutpaceError(
                f"the loss of step {state.step + 1} is {total}: training has diverged. Choose lower learning rates "
                f"(peak is {self._peak:g}) and another folder"
            )
        nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["base_rate"] * rate
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return StepReport(
            state.step + 1,
            state.seconds,
            done,
            total,
            tuple(float(x) for x in losses.by_depth),
            tuple(float(x) for x in losses.accuracy),
            rate,
            batch.num_learned,
        )

    # Measuring and keeping.

    def _consider(self, candidate: Path) -> float:
        """Measure a drafter's file on held-out text; keep it if it is the best so far. Returns its score."""
        state = self._state
        measured = self._measure(candidate, (SCORED,))
        score = measured.mean(SCORED)
        if state.best is None or score > state.best[1]:
            kept = self._folder / f"step-{state.step:07}.gguf"
            if candidate != kept:
                shutil.copyfile(candidate, kept)
            state.best = (kept.name, score)
        state.log.append({"step": state.step, "seconds": state.seconds, "score": score, "rows": _plain(measured)})
        return score

    def _measure(self, path: Path, budgets: Sequence[int]) -> Simulation:
        network = read_network(path, self._kind, self._target)
        return simulate(network, self._target, self._held_out, budgets=budgets)

    def _save(self) -> None:
        """Write the checkpoint; drafters that it does not name are in nobody's way any more."""
        state = self._state
        state.network = dict(self._network.state_dict())
        state.optimisers = [optimiser.state_dict() for optimiser in self._optimisers]
        save_state(self._folder / STATE, state)
        for path in self._folder.glob("step-*.gguf"):
            if state.best is None or path.name != state.best[0]:
                path.unlink()
        self._saved_at = self._clock()

    def finish(self) -> Outcome:
        """Return the outcome; the best drafter is now `drafter.gguf` too."""
        state = self._state
        assert state.best is not None
        new, path = self._folder / f"{RESULT}.new", self._folder / RESULT
        shutil.copyfile(self._folder / state.best[0], new)
        new.replace(path)
        started_at = state.log[0]["score"] if self._start is not None else None
        return Outcome(
            path, self._measure(path, BUDGETS), state.best[1], started_at, state.step, state.seconds, state.log
        )


def _optimisers(network: DraftNetwork, settings: TrainSettings) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices, AdamW for vectors and head: every group remembers the rate at its peak."""
    named = list(network.named_parameters())
    matrices = [x for name, x in named if x.ndim == 2 and name not in _LISTS]
    vectors = [x for name, x in named if x.ndim == 1 or name == "masks"]
    adam: list[dict[str, Any]] = [{"params": vectors, "lr": settings.vector_rate}]
    if network.head.requires_grad:
        adam.append({"params": [network.head], "lr": settings.head_rate})
    found: list[torch.optim.Optimizer] = [
        Muon(matrices, settings.matrix_rate),
        torch.optim.AdamW(adam, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    for optimiser in found:
        for group in optimiser.param_groups:
            group["base_rate"] = group["lr"]
    return found


def _plain(measured: Simulation) -> list[dict[str, Any]]:
    return [
        {"kind": row.kind, "sampled": row.sampled, "texts": row.texts, "tokens": row.tokens, "chains": row.chains}
        for row in measured.rows
    ]
