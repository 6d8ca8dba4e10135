"""The stage `training` of a run, whatever it learns: device, time, log and progress around the loop.

On the CPU a drafter's target is the engine itself, with its own passes; on an accelerator it is PyTorch's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from outpace.api import LanguageModel
from outpace.train.device import device_of, name_of, torch_target
from outpace.train.drafting import Drafting
from outpace.train.joint.target import TrainableTarget
from outpace.train.joint.tuned import TunedDrafting
from outpace.train.objective import M, Objective, P
from outpace.train.options import TrainOptions
from outpace.train.report.log import Log
from outpace.train.settings import TrainSettings
from outpace.train.stages import KEEP_SECONDS, LOG, TextStages
from outpace.train.target import EngineTarget, FrozenTarget
from outpace.train.text.corpus import Conversation
from outpace.train.trainer import Outcome, StepReport, train


def learn(
    stages: TextStages, prepare: Callable[[torch.device, float], Objective[P, M]]
) -> tuple[Outcome[M], dict[str, Any]]:
    """Run the stage, or go on with it; return its outcome, and what the ledger is to note of it, in plain values.

    prepare: makes what is learned, for a device and so many seconds of training. On the CPU, PyTorch takes as many
    threads as the engine.
    """
    device = device_of(stages.options.device)
    if device.type == "cpu":
        torch.set_num_threads(stages.lm.runner.ops.threads)
    timer, log = stages.begin("training"), Log(stages.folder / LOG)
    with stages.shown() as show:

        def report(step: StepReport) -> None:
            log.add(step.as_dict())
            timer.keep(at_least=KEEP_SECONDS)
            show(int(1000 * step.done), 1000, step.in_words())

        show(0, 1000, "reading the model")
        objective = prepare(device, timer.allowed)
        outcome = train(objective, stages.folder / "training", report)
    timer.keep()
    facts = {
        "path": str(outcome.path.relative_to(stages.folder)),
        "before": None if outcome.before is None else asdict(outcome.before),
        "measured": asdict(outcome.measured),
        "score_before": outcome.score_before,
        "score": outcome.score,
        "steps": outcome.steps,
        "positions": sum(entry["positions"] for entry in log.entries),
        "conversations": len(objective.text),
        "device": name_of(device),
    }
    return outcome, json.loads(json.dumps(facts))


def drafting_on(
    device: torch.device,
    seconds: float,
    options: TrainOptions,
    lm: LanguageModel,
    text: Sequence[Conversation],
    held_out: Sequence[Conversation],
    start: Path | None,
) -> Drafting:
    """Return a drafter that learns, over the model as it is, or tuned beside it; UsageError where that cannot be."""
    settings = settings_of(options, seconds, on_cpu=device.type == "cpu")
    if not options.joint:
        return Drafting(options.kind, settings, text, held_out, target_on(device, lm), start)
    target = TrainableTarget(lm, device, torch.float32 if device.type == "cpu" else torch.bfloat16)
    return TunedDrafting(options.joint_settings, settings, text, held_out, target, start)


def target_on(device: torch.device, lm: LanguageModel) -> FrozenTarget:
    """Return what the drafter reads hidden states of."""
    return EngineTarget(lm) if device.type == "cpu" else torch_target(lm, device)


def settings_of(options: TrainOptions, seconds: float, *, on_cpu: bool) -> TrainSettings:
    """Return the trainer's settings. All learning rates keep the recipe's ratio to that of matrices."""
    settings = TrainSettings(**options.length(seconds, on_cpu=on_cpu))
    if options.learning_rate is None:
        return settings
    ratio = options.learning_rate / settings.matrix_rate
    return replace(
        settings,
        matrix_rate=options.learning_rate,
        vector_rate=settings.vector_rate * ratio,
        head_rate=settings.head_rate * ratio,
        peak=1.0,
    )
