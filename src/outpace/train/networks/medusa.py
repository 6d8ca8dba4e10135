"""The network of `models/medusa.py` in PyTorch: residual heads on the target's last hidden state (arXiv:2401.10774)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from outpace.errors import UsageError
from outpace.models.medusa import MedusaConfig
from outpace.train.batch import Batch
from outpace.train.networks.network import DraftNetwork
from outpace.train.networks.parts import pick
from outpace.train.target import FrozenTarget
from outpace.train.text.corpus import Conversation
from outpace.train.views import views_of
from outpace.weights.trained import Entries

_NUM_HEADS = 4
NUM_RANKS = 10  # of which accuracies are measured: a tree branches no wider


class MedusaNetwork(DraftNetwork):
    """Depth k at anchor i is head k's state, from the final norm's output at position i - 1 alone.

    The rows are those of the target's own output matrix, and stay as they are (Medusa-1). accuracies: [depths, ranks],
    how often each head's j-th likeliest token came; the drafter builds its trees by them.
    """

    kind: ClassVar[str] = "medusa"
    decay: ClassVar[float] = 0.8
    share: ClassVar[float] = 1.0

    def __init__(
        self, target: FrozenTarget, head_tokens: Sequence[int], num_fixed: int, accuracies: NDArray[np.float64]
    ) -> None:
        super().__init__()
        self.head_tokens, self.num_fixed, self.accuracies = tuple(head_tokens), num_fixed, accuracies
        self.taps = (target.config.num_layers,)
        self.num_depths = len(accuracies)
        width, device = target.config.width, target.device
        self.w = nn.ParameterList([nn.Parameter(torch.zeros(width, width, device=device)) for _ in accuracies])
        self.b = nn.ParameterList([nn.Parameter(torch.zeros(width, device=device)) for _ in accuracies])
        self._final_norm = (target.final_norm,)  # in a tuple: no parameter, nor saved with them
        rows = target.unembedding[torch.tensor(self.head_tokens, device=device)]
        self.register_buffer("head", rows, persistent=False)

    @classmethod
    def fresh(
        cls,
        target: FrozenTarget,
        taps: tuple[int, ...],
        head_tokens: tuple[int, ...],
        num_fixed: int,
        generator: torch.Generator,
    ) -> Self:
        """Begin with heads that repeat the target's own guess. taps, generator: not needed."""
        return cls(target, head_tokens, num_fixed, np.zeros((_NUM_HEADS, NUM_RANKS)))

    @classmethod
    def of(cls, entries: Entries, tensors: Mapping[str, Tensor], target: FrozenTarget) -> Self:
        config = MedusaConfig.read(entries, target.identity.traits)
        if config.unembedding != "target":
            raise UsageError(
                f"{entries.where}: has an output matrix of its own, which Outpace does not train: begin a new one"
            )
        network = cls(target, config.head_tokens, config.num_fixed, np.array(config.accuracies))
        network.load_state_dict(dict(tensors))
        return network

    def numbers(self) -> dict[str, Any]:
        return {
            "num_heads": len(self.accuracies),
            "unembedding": "target",
            "num_fixed": self.num_fixed,
            "head_tokens": list(self.head_tokens),
            "accuracies": self.accuracies.flatten().tolist(),
        }

    @torch.no_grad()
    def calibrate(self, target: FrozenTarget, text: Sequence[Conversation]) -> None:
        """Measure the heads' accuracies by rank: tokens that the head does not know count as wrong."""
        hits, total = np.zeros_like(self.accuracies), np.zeros((len(self.accuracies), 1))
        for batch, views in views_of(self, target, text):
            states = torch.stack(self.states(batch, len(self.accuracies)))
            for b, view in enumerate(views):
                for k in range(len(self.accuracies)):
                    logits = view.logits(states[k, b, : len(view.anchors)], view.anchors)
                    best = view.best(logits, view.anchors + k + 1, self.accuracies.shape[1], has_noise=False)
                    truth = view.truth(k + 1)
                    is_right = view.columns[best.columns] == truth[:, None]
                    hits[k, : is_right.shape[1]] += is_right.sum(axis=0)
                    total[k] += (truth >= 0).sum()
        # Where text is short a rank may have been luckier than the one before it: order is what a tree relies on.
        self.accuracies = np.minimum.accumulate(hits / np.maximum(total, 1), axis=1)

    def states(self, batch: Batch, num_depths: int) -> list[Tensor]:
        h = pick(batch.features, batch.anchors - 1) * self._final_norm[0]
        return [h + F.silu(F.linear(h, self.w[k], self.b[k])) for k in range(num_depths)]
