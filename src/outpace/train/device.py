"""Where training computes: a device of PyTorch by its name, and the target on it."""

from __future__ import annotations

import torch

from outpace.api import LanguageModel
from outpace.errors import UsageError
from outpace.train.torch_target import TorchTarget


def device_of(name: str) -> torch.device:
    """Return a device by its name; auto: the accelerator that PyTorch finds, or the CPU. Raises UsageError."""
    if name == "auto":
        return torch.device(torch.accelerator.current_accelerator() or "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter where PyTorch was built without CUDA
        raise UsageError(
            f"--device: {name!r} is no device of this PyTorch here: {str(error).splitlines()[0]}"
        ) from error
    return device


def name_of(device: torch.device) -> str:
    """Return a device as people call it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def torch_target(lm: LanguageModel, device: torch.device) -> TorchTarget:
    """Return the target in PyTorch: on CUDA in float16, if its numbers fit, which int8 activations have a use for."""
    if device.type == "cuda":
        target = TorchTarget(lm, device, torch.float16)
        if target.network.is_finite():
            return target
    return TorchTarget(lm, device, torch.bfloat16)
