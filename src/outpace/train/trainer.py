"""Train a drafter: steps over the text, checkpoints that go on exactly, the best drafter by simulation."""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from outpace.errors import OutpaceError, UsageError, one_of
from outpace.train.backbone import Backbone, Frozen
from outpace.train.batch import Plan
from outpace.train.build import NETWORKS, build_network, fresh_network
from outpace.train.export import export, read_network
from outpace.train.feeding import feed
from outpace.train.joint.files import beside
from outpace.train.joint.measure import Divergence
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
_STEPS_READ = 16  # whose losses are read from an accelerator at once: each reading waits for all work to be done
_ADAPTER = "adapter."  # before the names of what is tuned of the target, in a checkpoint
_CONTINUED_PEAK = 0.3  # of the recipe's learning rates: more would first undo what the drafter knows


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step did. seconds: of training so far. positions: with labels, in this step.

    simulated: tokens per step on held-out text, where the run has just measured itself. divergence: the mean of
    KL(original || target), where the target is tuned; the loss is then the sum of that and of the drafts' weighted one.
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
    divergence: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run brought. path: of the best drafter's file. started_at: the score that `start` had, if one was given.

    tokens_per_step: simulated, of that file on the held-out text. log: one entry for each evaluation. divergence: of
    the target that was tuned beside it, whose adapter is `beside(path)`; the score is then the simulated tokens per
    step times the share of tokens that are the original's.
    """

    path: Path
    tokens_per_step: Simulation
    score: float
    started_at: float | None
    steps: int
    seconds: float
    log: list[dict[str, Any]]
    divergence: Divergence | None = None


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
    backbone: Backbone | None = None,
) -> Outcome:
    """Train a drafter of some kind in a folder, or go on with the run that is there; return its outcome.

    start: a drafter's file to begin with; it is measured first, so that the outcome is never worse on `held_out`.
    backbone: of a target that learns too (None: it stays as it is); `target` is then its target.
    On the CPU a run that was stopped at any time, even by kill -9, ends with the bits of one that was not, if its end
    is given in steps. Raises UsageError for what cannot work, OutpaceError where the loss is no number any more.
    """
    one_of("kind", kind, NETWORKS)
    if not any(len(own.tokens) >= own.num_prompt + 2 for own in held_out):
        raise UsageError("there is no held-out text to measure drafters on: hold out more, or give more text")
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(kind, settings, text, held_out, backbone or Frozen(target), folder, start, clock)
    run.begin()
    with feed(run.plan, run.num_steps, is_ahead=is_accelerator(target.device)) as plans:
        while not run.is_over:
            for step in run.step(plans):
                report(step)
    return run.finish()


@dataclass(frozen=True, slots=True)
class _Taken:
    """A step that was taken. found: loss, norm of the gradients, loss and accuracy of each depth; on the device.

    The target's divergence comes last, where it is tuned.
    """

    report: StepReport
    found: Tensor | None


def is_accelerator(device: torch.device) -> bool:
    """Whether a device works beside the host: batches are made ahead, in bfloat16, and losses are read now and then."""
    return device.type != "cpu"


class _Run:
    """A run under way: the network and its optimisers, and the state that is saved."""

    def __init__(
        self,
        kind: str,
        settings: TrainSettings,
        text: Sequence[Conversation],
        held_out: Sequence[Conversation],
        backbone: Backbone,
        folder: Path,
        start: Path | None,
        clock: Callable[[], float],
    ) -> None:
        self._kind, self._settings, self._text, self._held_out = kind, settings, text, held_out
        self._backbone, self._folder, self._start, self._clock = backbone, folder, start, clock
        self._target = target = backbone.target
        self._batches = Batches(text, settings.tokens_per_batch, settings.seed)
        self._peak = settings.peak or (1.0 if start is None else _CONTINUED_PEAK)
        self._is_accelerated = is_accelerator(target.device)
        self._dtype = torch.bfloat16 if self._is_accelerated else torch.float32
        self._saved_at = clock()
        self._taken: list[_Taken] = []
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
            **self._backbone.made_with(),
        }
        path = self._folder / STATE
        if path.exists():
            self._state = load_state(path, made_with)
            own, tuned = _apart(self._state.network)
            self._network = build_network(self._kind, Entries(self._state.numbers, str(path)), own, self._target)
            self._backbone.load(tuned)
            self._optimisers = self._new_optimisers()
            for optimiser, saved in zip(self._optimisers, self._state.optimisers, strict=True):
                optimiser.load_state_dict(saved)
        elif self._start is None:
            self._network = fresh_network(self._kind, self._target, self._text, self._settings)
            self._begin_with(made_with)
        else:
            self._network = read_network(self._start, self._kind, self._target)
            self._begin_with(made_with)
            self._consider(self._written() if self._backbone.parameters() else self._start)
            self._save()
        self._head_tokens = torch.tensor(self._network.head_tokens, device=self._target.device)

    def _begin_with(self, made_with: dict[str, Any]) -> None:
        self._optimisers = self._new_optimisers()
        self._state = RunState(made_with, self._network.numbers(), {}, [])

    def _new_optimisers(self) -> list[torch.optim.Optimizer]:
        """Return the network's optimisers, and behind them the backbone's."""
        self._of_backbone = self._backbone.optimisers()
        return [*optimisers_of(self._network, self._settings), *self._of_backbone]

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

    def plan(self, step: int) -> Plan | None:
        """Return the plan of a step: a function of (text, seed, step)."""
        chosen = [self._text[i] for i in self._batches.batch(step)]
        rng = np.random.default_rng([self._settings.seed, 1, step]) if self._network.share < 1 else None
        return Plan.of(chosen, self._network.num_depths, rng, self._network.share, is_aligned=self._is_accelerated)

    def step(self, plans: Iterator[Plan | None]) -> list[StepReport]:
        """Take a step, measure and save where it is time; return the steps whose losses are known by now."""
        before, state = self._clock(), self._state
        taken = self._learn(next(plans))
        state.step += 1
        state.seconds += self._clock() - before
        self._taken.append(replace(taken, report=replace(taken.report, seconds=state.seconds)))
        due = int(self._done * self._settings.evaluations + 1e-9)
        is_due = state.num_evaluated < due
        is_to_save = self._clock() - self._saved_at >= self._settings.save_every_s
        if not (is_due or is_to_save or len(self._taken) >= (_STEPS_READ if self._is_accelerated else 1)):
            return []
        known = self._known()
        if is_due:
            candidate = self._written()
            state.num_evaluated = due
            known[-1] = replace(known[-1], simulated=self._consider(candidate))
        if is_due or is_to_save:
            self._save()
        return known

    def _known(self) -> list[StepReport]:
        """Return the steps that were taken since the last call, their losses read from the device in one piece."""
        taken, self._taken = self._taken, []
        found = [own.found for own in taken if own.found is not None]
        numbers = iter(torch.cat(found).tolist() if found else [])
        return [
            own.report if own.found is None else self._told(own.report, list(islice(numbers, len(own.found))))
            for own in taken
        ]

    def _told(self, report: StepReport, numbers: list[float]) -> StepReport:
        """Return a step with its numbers, in the order of `_Taken.found`."""
        total, slope, *depths = numbers
        divergence = depths.pop() if self._backbone.parameters() else None
        if not math.isfinite(total + slope):
            raise OutpaceError(
                f"the loss of step {report.step} is {total}, the norm of its gradients {slope}: training has diverged. "
                f"Choose lower learning rates (peak is {self._peak:g}) and another folder"
            )
        half = len(depths) // 2
        by_depth = tuple(depths[:half]), tuple(depths[half:])
        return replace(
            report, loss=total, loss_by_depth=by_depth[0], accuracy_by_depth=by_depth[1], divergence=divergence
        )

    def _learn(self, plan: Plan | None) -> _Taken:
        state, settings, network = self._state, self._settings, self._network
        done = self._done
        rate = self._peak * factor(state.step, done, settings.warmup_steps)
        report = StepReport(state.step + 1, state.seconds, done, math.nan, (), (), rate, 0)
        if plan is None:
            return _Taken(report, None)
        losses = self._backbone.losses(network, plan, self._head_tokens, self._dtype, done)
        losses.total.backward()  # type: ignore[no-untyped-call]
        slope = nn.utils.clip_grad_norm_([*network.parameters(), *self._backbone.parameters()], settings.clip)
        for optimiser in self._optimisers:
            own = rate * self._backbone.pace(done) if optimiser in self._of_backbone else rate
            for group in optimiser.param_groups:
                group["lr"] = group["base_rate"] * own
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        parts = [*losses.drafts.by_depth, *losses.drafts.accuracy]
        parts += [] if losses.divergence is None else [losses.divergence]
        found = torch.stack([losses.total.detach(), slope, *parts])
        return _Taken(replace(report, positions=losses.num_learned), found)

    # Measuring and keeping.

    def _written(self) -> Path:
        """Return the drafter's file of this step, written with what was tuned beside it."""
        path = self._folder / f"step-{self._state.step:07}.gguf"
        identity = self._backbone.write(path, self._settings.format)
        with self._backbone.as_written(path):
            self._network.calibrate(self._target, self._held_out)
        export(self._network, identity, path, self._settings.format)
        return path

    def _consider(self, candidate: Path) -> float:
        """Measure a drafter's file on held-out text; keep it if it is the best so far.

        Returns its simulated tokens per step.
        """
        state = self._state
        measured, divergence = self._measure(candidate, (SCORED,))
        simulated = measured.mean(SCORED)
        score = simulated if divergence is None else simulated * divergence.top1
        if state.best is None or score > state.best[1]:
            kept = self._folder / f"step-{state.step:07}.gguf"
            if candidate != kept:
                shutil.copyfile(candidate, kept)
            state.best = (kept.name, score)
        entry = {"step": state.step, "seconds": state.seconds, "score": score, "rows": _plain(measured)}
        state.log.append(entry if divergence is None else entry | {"divergence": asdict(divergence)})
        return simulated

    def _measure(self, path: Path, budgets: Sequence[int]) -> tuple[Simulation, Divergence | None]:
        network = read_network(path, self._kind, self._target)
        with self._backbone.as_written(path):
            found = simulate(network, self._target, self._held_out, budgets=budgets)
            return found, self._backbone.divergence(self._held_out)

    def _save(self) -> None:
        """Write the checkpoint; drafters that it does not name are in nobody's way any more."""
        state = self._state
        tuned = {f"{_ADAPTER}{name}": x for name, x in self._backbone.state().items()}
        state.network = dict(self._network.state_dict()) | tuned
        state.optimisers = [optimiser.state_dict() for optimiser in self._optimisers]
        save_state(self._folder / STATE, state)
        for path in self._folder.glob("step-*.gguf"):
            if state.best is None or path not in _files(self._folder / state.best[0]):
                path.unlink()
        self._saved_at = self._clock()

    def finish(self) -> Outcome:
        """Return the outcome; the best drafter is now `drafter.gguf` too."""
        state = self._state
        assert state.best is not None
        path = self._folder / RESULT
        for own, kept in zip(_files(self._folder / state.best[0]), _files(path), strict=True):
            if own.exists():
                new = kept.with_name(f"{kept.name}.new")
                shutil.copyfile(own, new)
                new.replace(kept)
        started_at = state.log[0]["score"] if self._start is not None else None
        measured, divergence = self._measure(path, BUDGETS)
        return Outcome(path, measured, state.best[1], started_at, state.step, state.seconds, state.log, divergence)


def _files(drafter: Path) -> tuple[Path, Path]:
    """Return a drafter's file, and where its target's adapter is if that was tuned."""
    return drafter, beside(drafter)


def _apart(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the network's tensors of a checkpoint, and the tuned ones of its target."""
    tuned = {name.removeprefix(_ADAPTER): x for name, x in state.items() if name.startswith(_ADAPTER)}
    return {name: x for name, x in state.items() if not name.startswith(_ADAPTER)}, tuned


def optimisers_of(network: DraftNetwork, settings: TrainSettings) -> list[torch.optim.Optimizer]:
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
