"""Distil a student: steps over the text, checkpoints that go on exactly, the best student by its use's measure."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from outpace.errors import OutpaceError, UsageError
from outpace.train.distill.labelled import Labelled, labelled
from outpace.train.distill.measure import Closeness, closeness
from outpace.train.distill.objectives import DIVERGENCES, hidden_distance
from outpace.train.distill.rows import Teacher, mean_divergence
from outpace.train.distill.sampling import written_by
from outpace.train.distill.settings import DistillSettings
from outpace.train.distill.teacher import LikelyTokens, Whole
from outpace.train.muon import Muon
from outpace.train.networks.transformer import TransformerNetwork
from outpace.train.schedule import factor
from outpace.train.state import RunState, load_state, save_state
from outpace.train.target import FrozenTarget
from outpace.train.text.corpus import Batches, Conversation, digest_of

STATE, LIKELY = "state.pt", "likely"
_SHARED = ("model.embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True, slots=True)
class DistillReport:
    """What a step did. seconds: of training so far. positions: that were learned in this step.

    on_policy: whether the student wrote the responses. hidden: the distance of hidden states, where it is learned.
    measured: on held-out text, where the run has just measured itself.
    """

    step: int
    seconds: float
    done: float
    loss: float
    hidden: float | None
    learning_rate: float
    positions: int
    on_policy: bool
    measured: Closeness | None = None


@dataclass(frozen=True, slots=True)
class Distilled:
    """What a run brought. state: of the best student. before, measured: the untrained student, and the best."""

    state: dict[str, Tensor]
    before: Closeness
    measured: Closeness
    steps: int
    seconds: float


def distil(
    student: TransformerNetwork,
    settings: DistillSettings,
    text: Sequence[Conversation],
    held_out: Sequence[Conversation],
    target: FrozenTarget,
    folder: Path,
    *,
    layers: Sequence[int] | None = None,
    ends: Collection[int] = (),
    report: Callable[[DistillReport], None] = lambda step: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Distilled:
    """Distil an untrained student in a folder, or go on with the run that is there; return its outcome.

    layers: of the teacher that the student has, for hidden-state matching. ends: tokens that end the student's own
    text. On the CPU a run that was stopped at any time, even by kill -9, ends with the bits of one that was not, if its
    end is given in steps. Raises UsageError for what cannot work, OutpaceError where the loss is no number any more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(student, settings, text, held_out, target, folder, layers, ends, clock)
    run.begin()
    while not run.is_over:
        report(run.step())
    return run.finish()


def score(measured: Closeness, use: str) -> float:
    """Return what students are chosen by: larger is better."""
    return measured.tokens_per_step if use == "draft" else -measured.perplexity


class _Run:
    """A run under way: the student and its optimisers, and the state that is saved."""

    def __init__(
        self,
        student: TransformerNetwork,
        settings: DistillSettings,
        text: Sequence[Conversation],
        held_out: Sequence[Conversation],
        target: FrozenTarget,
        folder: Path,
        layers: Sequence[int] | None,
        ends: Collection[int],
        clock: Callable[[], float],
    ) -> None:
        self._student, self._settings, self._text, self._held_out = student, settings, text, held_out
        self._target, self._folder, self._ends, self._clock = target, folder, ends, clock
        self._layers = None if layers is None else list(layers)
        self._divergence = DIVERGENCES[settings.divergence]
        self._dtype = torch.float32 if target.device.type == "cpu" else torch.bfloat16
        student.requires_grad_(True)
        for name, x in student.named_parameters():
            if name in _SHARED and not settings.trains_embedding:
                x.requires_grad_(False)
        self._optimisers = _optimisers(student, settings)
        self._batches = Batches(text, settings.tokens_per_batch, settings.seed)
        top_k, vocab_size = settings.top_k, target.config.vocab_size
        if top_k is not None and top_k >= vocab_size:
            raise UsageError(f"top_k must be below the {vocab_size} tokens of the vocabulary, is {top_k}")
        self._likely = None if top_k is None else LikelyTokens(folder / LIKELY, text, top_k)
        self._saved_at = clock()
        self._state: RunState

    # Beginning.

    def begin(self) -> None:
        """Take up the run in the folder, or start one with a measurement of the untrained student."""
        made_with = {
            "target": self._target.identity.fingerprint,
            "student": _digest(self._student),
            "layers": self._layers,
            "text": digest_of(self._text),
            **self._settings.as_dict(),
        }
        path = self._folder / STATE
        if path.exists():
            self._state = load_state(path, made_with)
            self._student.load_state_dict(self._state.network)
            for optimiser, saved in zip(self._optimisers, self._state.optimisers, strict=True):
                optimiser.load_state_dict(saved)
            return
        self._state = RunState(made_with, {}, {}, [])
        self._consider()
        self._save()

    # Steps.

    @property
    def is_over(self) -> bool:
        """Whether the run has reached its end: a state at the end is only saved when it has been measured."""
        return self._settings.done(self._state.step, self._state.seconds) >= 1

    def step(self) -> DistillReport:
        """Take a step, measure and save where it is time."""
        before, state = self._clock(), self._state
        found = self._learn()
        state.step += 1
        state.seconds += self._clock() - before
        found = replace(found, seconds=state.seconds)
        due = int(self._settings.done(state.step, state.seconds) * self._settings.evaluations + 1e-9)
        if state.num_evaluated < due:
            state.num_evaluated = due
            found = replace(found, measured=self._consider())
            self._save()
        elif self._clock() - self._saved_at >= self._settings.save_every_s:
            self._save()
        return found

    def _learn(self) -> DistillReport:
        state, settings = self._state, self._settings
        done = settings.done(state.step, state.seconds)
        rate = factor(state.step, done, settings.warmup_steps)
        places = self._batches.batch(state.step)
        chosen = [self._text[i] for i in places]
        rng = np.random.default_rng([settings.seed, 2, state.step])
        is_own = rng.random() < settings.on_policy
        if is_own:
            seed = int(rng.integers(2**31))
            chosen = written_by(self._student, chosen, settings.on_policy_tokens, self._ends, seed)
        batch = labelled(chosen, self._target.device)
        if batch is None:
            return DistillReport(state.step + 1, state.seconds, done, math.nan, None, rate, 0, is_own)
        loss, hidden = self._loss(batch, None if is_own else places)
        total = loss if hidden is None else loss + settings.hidden * hidden
        self._descend(total, rate)
        return DistillReport(
            state.step + 1,
            state.seconds,
            done,
            float(loss.detach()),
            None if hidden is None else float(hidden.detach()),
            rate,
            len(batch.places),
            is_own,
        )

    def _loss(self, batch: Labelled, places: Sequence[int] | None) -> tuple[Tensor, Tensor | None]:
        """Return the mean divergence of a batch, and the distance of hidden states if it is learned.

        places: of the batch in the text; None for text that is new.
        """
        student, target, layers = self._student, self._target, self._layers
        last, own_last = target.config.num_layers + 1, student.last_tap
        matched = bool(self._settings.hidden) and layers is not None
        # What the student's i-th layer gives is what the next one of the teacher's that it has reads there.
        pairs = dict(enumerate([*layers[1:], target.config.num_layers], 1)) if matched and layers else {}
        needs_pass = self._likely is None or places is None or bool(pairs)
        theirs: dict[int, Tensor] = {}
        if needs_pass:
            with torch.no_grad():
                theirs = target.padded(batch.tokens, batch.lengths, sorted({*pairs.values(), last}))
        mine = student(batch.tokens, taps=sorted({*pairs, own_last}))
        teacher: Teacher
        if self._likely is not None and places is not None:
            own = [i for i in places if len(self._text[i].tokens) > max(self._text[i].num_prompt, 1)]
            teacher = self._likely.of(own, batch, target, self._dtype, self._divergence)
        else:
            final = theirs[last].flatten(0, 1)[batch.places]
            teacher = Whole(final, target.unembedding, self._dtype, self._divergence)
        final = mine[own_last].flatten(0, 1)[batch.places]
        with torch.autocast(final.device.type, self._dtype, enabled=self._dtype != torch.float32):
            loss = mean_divergence(final, student.unembedding, teacher)
        if not pairs:
            return loss, None
        distances = [
            hidden_distance(mine[i].flatten(0, 1)[batch.places], theirs[j].flatten(0, 1)[batch.places]).mean()
            for i, j in pairs.items()
        ]
        return loss, torch.stack(distances).mean()

    def _descend(self, loss: Tensor, rate: float) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        value = float(loss.detach())
        if not math.isfinite(value):
            raise OutpaceError(
                f"the loss of step {self._state.step + 1} is {value}: training has diverged. Choose a lower learning "
                f"rate (matrices have {self._settings.matrix_rate:g}) and another folder"
            )
        nn.utils.clip_grad_norm_([x for x in self._student.parameters() if x.requires_grad], self._settings.clip)
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["base_rate"] * rate
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    # Measuring and keeping.

    def _consider(self) -> Closeness:
        """Measure the student as its file will hold it, in float16; keep it if it is the best so far."""
        state, settings = self._state, self._settings
        halves = {name: x.half() for name, x in self._student.state_dict().items()}
        rounded = TransformerNetwork.of(
            self._student.config,
            halves,
            device=self._target.device,
            compute=self._student.compute,
        ).requires_grad_(False)
        measured = closeness(rounded, self._target, self._held_out, settings.max_draft)
        value = score(measured, settings.use)
        if state.best is None or value > state.best[1]:
            name = f"step-{state.step:07}.pt"
            new = self._folder / f"{name}.new"
            torch.save(halves, new)
            new.replace(self._folder / name)
            state.best = (name, value)
        state.log.append({"step": state.step, "seconds": state.seconds, **measured.as_dict()})
        return measured

    def _save(self) -> None:
        """Write the checkpoint; students that it does not name are in nobody's way any more."""
        state = self._state
        state.network = dict(self._student.state_dict())
        state.optimisers = [optimiser.state_dict() for optimiser in self._optimisers]
        save_state(self._folder / STATE, state)
        for path in self._folder.glob("step-*.pt*"):
            if state.best is None or path.name != state.best[0]:
                path.unlink()
        self._saved_at = self._clock()

    def finish(self) -> Distilled:
        """Return the outcome."""
        state = self._state
        assert state.best is not None
        halves = torch.load(self._folder / state.best[0], map_location="cpu", weights_only=True)
        found = [_measured(entry) for entry in state.log]
        best = max(found, key=lambda measured: score(measured, self._settings.use))
        return Distilled(halves, found[0], best, state.step, state.seconds)


def _measured(entry: dict[str, Any]) -> Closeness:
    """Return a measurement from the log."""
    return Closeness(**{name: value for name, value in entry.items() if name not in ("step", "seconds")})


def _optimisers(student: TransformerNetwork, settings: DistillSettings) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices, AdamW for the rest: every group remembers the rate at its peak."""
    named = [(name, x) for name, x in student.named_parameters() if x.requires_grad]
    matrices = [x for name, x in named if x.ndim == 2 and name not in _SHARED]
    groups = [{"params": [x for _, x in named if x.ndim == 1], "lr": settings.vector_rate}]
    if shared := [x for name, x in named if name in _SHARED]:
        groups.append({"params": shared, "lr": settings.embedding_rate})
    found: list[torch.optim.Optimizer] = [
        Muon(matrices, settings.matrix_rate),
        torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    for optimiser in found:
        for group in optimiser.param_groups:
            group["base_rate"] = group["lr"]
    return found


def _digest(student: TransformerNetwork) -> list[float]:
    """Return what tells one untrained student from another: the sums of some of its tensors."""
    state = student.state_dict()
    return [float(x.double().sum()) for x in state.values() if x.ndim == 2][-8:]
