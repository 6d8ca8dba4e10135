"""Hand text, target and settings to the trainer: on the CPU the engine's own passes, on an accelerator PyTorch's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from outpace.api import LanguageModel
from outpace.errors import UsageError
from outpace.train.backbone import Backbone, Frozen
from outpace.train.joint.target import TrainableTarget
from outpace.train.joint.tuned import Tuned
from outpace.train.options import TrainOptions
from outpace.train.settings import TrainSettings
from outpace.train.target import EngineTarget, FrozenTarget
from outpace.train.text.corpus import Conversation
from outpace.train.torch_target import TorchTarget
from outpace.train.trainer import Outcome, StepReport
from outpace.train.trainer import train as run

_TOKENS = {True: 4096, False: 24576}  # of a step, on the CPU and elsewhere


def train(
    options: TrainOptions,
    seconds: float,
    device: torch.device,
    text: Sequence[Conversation],
    held_out: Sequence[Conversation],
    lm: LanguageModel,
    folder: Path,
    start: Path | None,
    report: Callable[[StepReport], None],
) -> Outcome:
    """Train a drafter for a loaded model, for so many seconds or the options' number of steps.

    On the CPU, PyTorch takes as many threads as the engine.
    """
    if device.type == "cpu":
        torch.set_num_threads(lm.runner.ops.threads)
    settings = settings_of(options, seconds, on_cpu=device.type == "cpu")
    backbone: Backbone = tuned_on(device, lm, options) if options.joint else Frozen(target_on(device, lm))
    return run(options.kind, settings, text, held_out, backbone.target, folder, start, report, backbone=backbone)


def device_of(name: str) -> torch.device:
    """Return a device by its name; auto: the accelerator that PyTorch finds, or the CPU. Raises UsageError."""
    if name == "auto":
        return torch.device(torch.accelerator.current_accelerator() or "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"--device: {name!r} is no device of this PyTorch here: {str(error).splitlines()[0]}"
        ) from error
    return device


def name_of(device: torch.device) -> str:
    """Return a device as people call it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def target_on(device: torch.device, lm: LanguageModel) -> FrozenTarget:
    """Return what the drafter reads hidden states of."""
    return EngineTarget(lm) if device.type == "cpu" else torch_target(lm, device)


def torch_target(lm: LanguageModel, device: torch.device) -> TorchTarget:
    """Return the target in PyTorch: on CUDA in float16, if its numbers fit, which int8 activations have a use for."""
    if device.type == "cuda":
        target = TorchTarget(lm, device, torch.float16)
        if target.network.is_finite():
            return target
    return TorchTarget(lm, device, torch.bfloat16)


def tuned_on(device: torch.device, lm: LanguageModel, options: TrainOptions) -> Tuned:
    """Return the target with an adapter to be learned, in PyTorch; UsageError for a network that runs there not yet."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    return Tuned(TrainableTarget(lm, device, dtype), options.joint_settings, options.seed)


def settings_of(options: TrainOptions, seconds: float, *, on_cpu: bool) -> TrainSettings:
    """Return the trainer's settings. All learning rates keep the recipe's ratio to that of matrices."""
    settings = TrainSettings(
        steps=options.steps,
        budget_s=seconds if options.steps is None else None,
        tokens_per_batch=options.batch_tokens or _TOKENS[on_cpu],
        seed=options.seed,
        evaluations=options.evaluations,
    )
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
