"""A target that is tuned beside its heads by low-rank adapters, against the original: the same weights, adapter off.

    L = KL(original || tuned) + heads_weight * (sum over heads of 0.8^k * cross-entropy)

The first part is the self-distillation of Medusa, section 2.3.2: the text is the original's own, and so are the labels,
those of the heads too. The heads' gradients flow through the hidden states into the adapter.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from outpace.train.adapt.export import read_result, write_adapter
from outpace.train.backbone import StepLosses
from outpace.train.batch import Batch, Depth, Plan
from outpace.train.distill.objectives import forward_kl
from outpace.train.distill.rows import mean_divergence
from outpace.train.distill.teacher import Whole
from outpace.train.joint.files import beside
from outpace.train.joint.measure import Divergence, divergence
from outpace.train.joint.settings import JointSettings
from outpace.train.joint.target import TrainableTarget
from outpace.train.losses import draft_loss, target_probs
from outpace.train.networks.lora import Adapter
from outpace.train.networks.network import DraftNetwork
from outpace.train.target import FrozenTarget, TargetIdentity
from outpace.train.text.corpus import Conversation
from outpace.weights.adapter import open_adapter

KIND = "medusa"  # of the adapter: on for every token, so that a model with it is another model


class Tuned:
    """A target with an adapter that learns (a `Backbone`); its `target` is the tuned one."""

    def __init__(self, target: TrainableTarget, settings: JointSettings, seed: int) -> None:
        """Wrap the matrices of a target's network, which then belongs to the backbone."""
        self.target: FrozenTarget = target
        self.settings, self._network = settings, target.network
        self._original = target.identity
        generator = torch.Generator().manual_seed(seed)
        self.adapter = Adapter(target.network.model.layers, settings.rank, settings.alpha, generator)
        self._tensors = self.adapter.tensors()

    def made_with(self) -> dict[str, Any]:
        return self.settings.as_dict()

    def parameters(self) -> list[nn.Parameter]:
        return list(self._tensors.values())

    def optimisers(self) -> list[torch.optim.Optimizer]:
        rate = self.settings.rate
        groups = [{"params": self.parameters(), "lr": rate, "base_rate": rate}]
        return [torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)]

    def pace(self, done: float) -> float:
        return self.settings.pace(done)

    def state(self) -> dict[str, Tensor]:
        return {name: own.detach() for name, own in self._tensors.items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        for name, own in self._tensors.items():
            own.copy_(state[name])

    def losses(
        self, network: DraftNetwork, plan: Plan, head_tokens: Tensor, dtype: torch.dtype, done: float
    ) -> StepLosses:
        assert network.taps == (self.target.config.num_layers,)
        tokens, anchors, labelled, *depths = plan.on(self.target.device)
        with torch.no_grad(), self.adapter.off():
            theirs = self._features(tokens)
        is_tuned = done >= self.settings.heads_first
        mine = self._features(tokens) if is_tuned else theirs  # until then nothing has learned that would differ
        batch = Batch(
            tokens,
            mine,
            anchors,
            tuple(Depth(*depths[i : i + 3]) for i in range(0, len(depths), 3)),
            self._final(mine, labelled),
        )
        final, unembedding = self._final(theirs, labelled), self.target.unembedding
        probs = target_probs(self.target, final, head_tokens, dtype)
        with torch.autocast(self.target.device.type, dtype, enabled=dtype != torch.float32):
            found = draft_loss(network, batch, probs, head_tokens)
            teacher = Whole(final, unembedding, dtype, forward_kl)
            kl = mean_divergence(batch.final, unembedding, teacher) if is_tuned else torch.zeros_like(found.total)
        return StepLosses(kl + self.settings.heads_weight * found.total, found, batch.num_learned, kl.detach())

    def write(self, drafter: Path, format: str) -> TargetIdentity:
        path = beside(drafter)
        write_adapter(path, KIND, self.adapter, self._original, format)
        own = open_adapter(path).fingerprint_of(bytes.fromhex(self._original.fingerprint))
        return replace(self._original, name=f"{self._original.name}, tuned by its adapter", fingerprint=own.hex())

    @contextmanager
    def as_written(self, drafter: Path) -> Generator[None, None, None]:
        own = {name: x.clone() for name, x in self.state().items()}
        self.load(read_result(beside(drafter)))
        try:
            yield
        finally:
            self.load(own)

    def divergence(self, held_out: Sequence[Conversation]) -> Divergence | None:
        return divergence(self._network, self.adapter, held_out)

    def _features(self, tokens: Tensor) -> Tensor:
        """Return the last layer's outputs, RMS-normalised without a weight, [B, T, D]."""
        last = self.target.config.num_layers
        x = self._network(tokens, taps=(last,))[last]
        return F.rms_norm(x, x.shape[-1:], None, self.target.config.eps)

    def _final(self, features: Tensor, labelled: Tensor) -> Tensor:
        return features.flatten(0, 1).index_select(0, labelled) * self.target.final_norm
