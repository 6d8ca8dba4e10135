"""Learners on tiny models, and blocks of tiny texts: what the tests of adaptation share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from outpace import LanguageModel
from outpace.models.checkpoint import open_checkpoint
from outpace.train.adapt.blocks import Blocks, make_blocks
from outpace.train.adapt.learner import Learner
from outpace.train.adapt.settings import AdaptSettings
from outpace.train.networks.transformer import Dequantised
from outpace.train.text.corpus import Conversation

CPU = torch.device("cpu")
# What a tiny adapter needs to learn in a few seconds: high rates, for there is little to spoil.
FAST: dict[str, Any] = {
    "tokens_per_batch": 1024,
    "block": 4,
    "rank": 16,
    "alpha": 16.0,
    "rate": 1e-2,
    "warmup_steps": 10,
    "save_every_s": 1e9,
}


def settings_of(kind: Any = "diffusion", **changes: Any) -> AdaptSettings:
    return AdaptSettings(kind=kind, **FAST | {"steps": 8, "evaluations": 2} | changes)


def learner_of(
    lm: LanguageModel, settings: AdaptSettings, mask_token: int | None = None, dtype: torch.dtype | None = None
) -> Learner:
    tensors = Dequantised(open_checkpoint(lm.path).tensors)
    return Learner(lm.config, tensors, settings, CPU, mask_token or lm.config.vocab_size, dtype)


def shaken(learner: Learner, seed: int = 0, spread: float = 0.05) -> Learner:
    """Return a learner that has learned something: every number moved at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for own in learner.parameters.values():
            own.add_(torch.randn(own.shape, generator=generator) * spread)
    return learner


def conversation(num_prompt: int, length: int, end: int | None = None, seed: int = 0) -> Conversation:
    """Return random tokens below 90, the last of them `end`."""
    tokens = np.random.default_rng([seed, num_prompt, length]).integers(0, 90, length).astype(np.int32)
    if end is not None:
        tokens[-1] = end
    return Conversation(tokens, num_prompt, False, "tiny")


def blocks_of(
    conversations: Sequence[Conversation],
    size: int = 4,
    shift: int = 1,
    ends: Sequence[int] = (96,),
    seed: int | None = None,
) -> Blocks:
    rng = None if seed is None else np.random.default_rng(seed)
    found = make_blocks(conversations, size, shift, ends, CPU, rng)
    assert found is not None
    return found
