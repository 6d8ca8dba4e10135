"""Heads, and low-rank adapters of their target, learned together, against the original: the same, adapter off.

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
from outpace.train.batch import Batch, Depth, Plan
from outpace.train.distill.objectives import forward_kl
from outpace.train.distill.rows import mean_divergence
from outpace.train.distill.teacher import Whole
from outpace.train.drafting import Drafted, Drafting
from outpace.train.export import export
from outpace.train.joint.files import beside
from outpace.train.joint.measure import divergence
from outpace.train.joint.settings import JointSettings
from outpace.train.joint.target import TrainableTarget
from outpace.train.losses import draft_loss, target_probs
from outpace.train.networks.lora import Adapter
from outpace.train.objective import StepLosses, adamw
from outpace.train.settings import TrainSettings
from outpace.train.target import TargetIdentity
from outpace.train.text.corpus import Conversation
from outpace.weights.adapter import open_adapter

KIND = "medusa"  # of the heads, and of the adapter: on for every token, so that a model with it is another model
_ADAPTER = "adapter."  # before the names of the adapter's tensors, in a checkpoint


class TunedDrafting(Drafting):
    """The objective of heads whose target learns too; its `target` is the tuned one.

    What is written beside a drafter's file is the adapter (`beside`).
    """

    def __init__(
        self,
        joint: JointSettings,
        settings: TrainSettings,
        text: Sequence[Conversation],
        held_out: Sequence[Conversation],
        target: TrainableTarget,
        start: Path | None = None,
    ) -> None:
        """Wrap the matrices of a target's network, which then belongs to the objective."""
        super().__init__(KIND, settings, text, held_out, target, start)
        self.joint, self.tuned_network = joint, target.network
        generator = torch.Generator().manual_seed(settings.seed)
        self.adapter = Adapter(target.network.model.layers, joint.rank, joint.alpha, generator)
        self._tensors = self.adapter.tensors()

    def made_with(self) -> dict[str, Any]:
        return super().made_with() | self.joint.as_dict()

    def load(self, state: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        super().load({name: x for name, x in state.items() if not name.startswith(_ADAPTER)}, numbers)
        self.load_adapter({name.removeprefix(_ADAPTER): x for name, x in state.items() if name.startswith(_ADAPTER)})

    @torch.no_grad()
    def load_adapter(self, state: Mapping[str, Tensor]) -> None:
        """Let the target have the numbers of an adapter."""
        for name, own in self._tensors.items():
            own.copy_(state[name])

    def state(self) -> dict[str, Tensor]:
        return super().state() | {f"{_ADAPTER}{name}": own.detach() for name, own in self._tensors.items()}

    # Learning.

    def parameters(self) -> list[nn.Parameter]:
        return [*super().parameters(), *self._tensors.values()]

    def optimisers(self) -> list[torch.optim.Optimizer]:
        return [*super().optimisers(), adamw([(self._tensors.values(), self.joint.rate)])]

    def paces(self, done: float) -> Sequence[float]:
        return 1.0, 1.0, self.joint.pace(done)

    def losses(self, plan: Plan, done: float) -> StepLosses:
        network, dtype, head_tokens = self.network, self._dtype, self._head_tokens
        assert network.taps == (self.target.config.num_layers,)
        tokens, anchors, labelled, *depths = plan.on(self.target.device)
        with torch.no_grad(), self.adapter.off():
            theirs = self._features(tokens)
        is_tuned = done >= self.joint.heads_first
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
        total = kl + self.joint.heads_weight * found.total
        return StepLosses(total, batch.num_learned, found.parts | {"divergence": kl.detach()})

    def _features(self, tokens: Tensor) -> Tensor:
        """Return the last layer's outputs, RMS-normalised without a weight, [B, T, D]."""
        last = self.target.config.num_layers
        x = self.tuned_network(tokens, taps=(last,))[last]
        return F.rms_norm(x, x.shape[-1:], None, self.target.config.eps)

    def _final(self, features: Tensor, labelled: Tensor) -> Tensor:
        return features.flatten(0, 1).index_select(0, labelled) * self.target.final_norm

    # Measuring and keeping.

    def write_first(self, path: Path) -> None:
        self.write(path)

    def write(self, path: Path) -> None:
        identity = self.write_adapter(path)
        with self.as_written(path):
            self.network.calibrate(self.target, self._held_out)
        export(self.network, identity, path, self.settings.format)

    def write_adapter(self, drafter: Path) -> TargetIdentity:
        """Write the adapter beside a drafter's file; return whom that drafter is for."""
        original, path = self.target.identity, beside(drafter)
        write_adapter(path, KIND, self.adapter, original, self.settings.format)
        adapter = open_adapter(path)
        own = adapter.fingerprint_of(bytes.fromhex(original.fingerprint))
        name = f"{original.name}, tuned by its adapter"
        return replace(original, name=name, fingerprint=own.hex(), adapter=adapter.fingerprint.hex())

    @contextmanager
    def as_written(self, drafter: Path) -> Generator[None, None, None]:
        """Let the target have for a while the numbers that were written beside a drafter's file."""
        own = {name: x.detach().clone() for name, x in self._tensors.items()}
        self.load_adapter(read_result(beside(drafter)))
        try:
            yield
        finally:
            self.load_adapter(own)

    def measure_for(self, path: Path, budgets: Sequence[int]) -> Drafted:
        with self.as_written(path):
            found = super().measure_for(path, budgets)
            return replace(found, divergence=divergence(self.tuned_network, self.adapter, self._held_out))
