"""Make a training network: a fresh one that begins from the target, or one from the tensors of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outpace.errors import UsageError
from outpace.train.networks.block import BlockNetwork
from outpace.train.networks.eagle import EagleNetwork
from outpace.train.networks.medusa import MedusaNetwork
from outpace.train.networks.network import DraftNetwork
from outpace.train.settings import TrainSettings
from outpace.train.target import FrozenTarget
from outpace.train.text.corpus import Conversation
from outpace.weights.trained import Entries

NETWORKS: Mapping[str, type[DraftNetwork]] = {
    network.kind: network for network in (EagleNetwork, MedusaNetwork, BlockNetwork)
}
_CHUNK = 1024  # conversations counted at once


def fresh_network(
    kind: str, target: FrozenTarget, text: Sequence[Conversation], settings: TrainSettings
) -> DraftNetwork:
    """Return an untrained network of the target's sizes; its head knows the most frequent tokens of the responses."""
    taps = settings.taps or default_taps(target.config.num_layers)
    if list(taps) != sorted(set(taps)) or not 1 <= taps[0] <= taps[-1] <= target.config.num_layers:
        raise UsageError(f"taps must be ascending layers in [1, {target.config.num_layers}], are {list(taps)}")
    tokens = frequent_tokens(text, target.config.vocab_size)[: settings.head_rows]
    generator = torch.Generator().manual_seed(settings.seed)
    return NETWORKS[kind].fresh(
        target, tuple(taps), tuple(tokens.tolist()), min(settings.num_fixed, len(tokens)), generator
    )


def build_network(kind: str, entries: Entries, tensors: Mapping[str, Tensor], target: FrozenTarget) -> DraftNetwork:
    """Return the network of a file's, or a checkpoint's, entries and tensors."""
    return NETWORKS[kind].of(entries, tensors, target)


def default_taps(num_layers: int) -> tuple[int, ...]:
    """Return four layers of a target, low, middle, high and last; of the shipped drafter's 30: 6, 14, 22, 30."""
    return tuple(sorted({max(round(num_layers * share), 1) for share in (0.2, 0.467, 0.733, 1.0)}))


def frequent_tokens(text: Sequence[Conversation], vocab_size: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return all V tokens, the most frequent ones of the responses first; equally frequent ones by their ids."""
    counts = np.zeros(vocab_size, np.int64)
    for first in range(0, len(text), _CHUNK):
        some = [text[i] for i in range(first, min(first + _CHUNK, len(text)))]
        tokens = np.concatenate([own.tokens[own.num_prompt :] for own in some])
        counts += np.bincount(tokens, minlength=vocab_size)
    return np.argsort(-counts, kind="stable")
