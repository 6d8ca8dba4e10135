"""What a student learns: its teacher's next-token distributions, on the teacher's text or on its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from outpace.errors import UsageError
from outpace.train.distill.labelled import Labelled, labelled
from outpace.train.distill.measure import Closeness, closeness
from outpace.train.distill.objectives import DIVERGENCES, hidden_distance
from outpace.train.distill.rows import Teacher, mean_divergence
from outpace.train.distill.sampling import written_by
from outpace.train.distill.settings import DistillSettings
from outpace.train.distill.teacher import LikelyTokens, Whole
from outpace.train.networks.transformer import TransformerNetwork
from outpace.train.objective import StepLosses, adamw, muon
from outpace.train.state import load_tensors, save_tensors
from outpace.train.target import FrozenTarget
from outpace.train.text.corpus import Conversation

_SHARED = ("model.embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True, slots=True)
class Planned:
    """A step: the conversations' places in the text, and the seed of the student's own responses, if it writes them."""

    places: Sequence[int]
    seed: int | None


class Distilling:
    """The objective (`objective.Objective`) of a student; the result's file holds its numbers in float16."""

    result = "student.pt"
    beginning: Literal["kept"] = "kept"
    peak = 1.0

    def __init__(
        self,
        student: TransformerNetwork,
        settings: DistillSettings,
        text: Sequence[Conversation],
        held_out: Sequence[Conversation],
        target: FrozenTarget,
        likely: Path,
        *,
        layers: Sequence[int] | None = None,
        ends: Collection[int] = (),
    ) -> None:
        """Take an untrained student. likely: folder of the teacher's likely tokens (`top_k`).

        layers: of the teacher that the student has, for hidden-state matching. ends: tokens that end the student's own
        text.
        """
        self.settings, self.text = settings, text
        self.is_accelerated = target.device.type != "cpu"
        self._student, self._held_out, self._target, self._ends = student, held_out, target, ends
        self._layers = None if layers is None else list(layers)
        self._divergence = DIVERGENCES[settings.divergence]
        self._dtype = torch.bfloat16 if self.is_accelerated else torch.float32
        student.requires_grad_(True)
        for name, x in student.named_parameters():
            if name in _SHARED and not settings.trains_embedding:
                x.requires_grad_(False)
        top_k, vocab_size = settings.top_k, target.config.vocab_size
        if top_k is not None and top_k >= vocab_size:
            raise UsageError(f"top_k must be below the {vocab_size} tokens of the vocabulary, is {top_k}")
        self._likely = None if top_k is None else LikelyTokens(likely, text, top_k)

    def made_with(self) -> dict[str, Any]:
        return {
            "target": self._target.identity.fingerprint,
            "student": _digest(self._student),
            "layers": self._layers,
        }

    # The network.

    def begin(self) -> None:
        """The student is what the caller made it."""

    def load(self, state: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        self._student.load_state_dict(state)

    def state(self) -> dict[str, Tensor]:
        return dict(self._student.state_dict())

    def numbers(self) -> dict[str, Any]:
        return {}

    # Learning.

    def parameters(self) -> list[nn.Parameter]:
        return [x for x in self._student.parameters() if x.requires_grad]

    def optimisers(self) -> list[torch.optim.Optimizer]:
        """Return Muon for the matrices, AdamW for the rest."""
        settings = self.settings
        named = [(name, x) for name, x in self._student.named_parameters() if x.requires_grad]
        matrices = [x for name, x in named if x.ndim == 2 and name not in _SHARED]
        groups = [([x for _, x in named if x.ndim == 1], settings.vector_rate)]
        if shared := [x for name, x in named if name in _SHARED]:
            groups.append((shared, settings.embedding_rate))
        return [muon(matrices, settings.matrix_rate), adamw(groups)]

    def paces(self, done: float) -> Sequence[float]:
        return 1.0, 1.0

    def plan(self, step: int, places: Sequence[int]) -> Planned:
        rng = np.random.default_rng([self.settings.seed, 2, step])
        is_own = rng.random() < self.settings.on_policy
        return Planned(places, int(rng.integers(2**31)) if is_own else None)

    def losses(self, plan: Planned, done: float) -> StepLosses | None:
        """Return the loss of a step. Its parts: on_policy, 1 where the student wrote; hidden, if it is learned."""
        chosen, settings = [self.text[i] for i in plan.places], self.settings
        if plan.seed is not None:
            chosen = written_by(self._student, chosen, settings.on_policy_tokens, self._ends, plan.seed)
        batch = labelled(chosen, self._target.device)
        if batch is None:
            return None
        loss, hidden = self._loss(batch, plan.places if plan.seed is None else None)
        parts = {"on_policy": torch.full_like(loss.detach(), plan.seed is not None)}
        if hidden is None:
            return StepLosses(loss, len(batch.places), parts)
        return StepLosses(loss + settings.hidden * hidden, len(batch.places), parts | {"hidden": hidden.detach()})

    def _loss(self, batch: Labelled, places: Sequence[int] | None) -> tuple[Tensor, Tensor | None]:
        """Return the mean divergence of a batch, and the distance of hidden states if it is learned.

        places: of the batch in the text; None for text that is new.
        """
        student, target, layers = self._student, self._target, self._layers
        last, own_last = target.config.num_layers + 1, student.last_tap
        matched = bool(self.settings.hidden) and layers is not None
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
            own = [i for i in places if len(self.text[i].tokens) > max(self.text[i].num_prompt, 1)]
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

    # Measuring and keeping.

    def write_first(self, path: Path) -> None:
        self.write(path)

    def write(self, path: Path) -> None:
        """Write the student as its file will hold it, in float16."""
        save_tensors(path, {name: x.half() for name, x in self._student.state_dict().items()})

    def measure(self, path: Path) -> Closeness:
        halves = load_tensors(path, self._target.device)
        student = self._student
        rounded = TransformerNetwork.of(student.config, halves, device=self._target.device, compute=student.compute)
        return closeness(rounded.requires_grad_(False), self._target, self._held_out, self.settings.max_draft)

    def measure_in_full(self, path: Path, best: Closeness) -> Closeness:
        return best

    def score(self, measured: Closeness) -> float:
        """Return the tokens per step of a draft model, or minus the perplexity of a student."""
        return measured.tokens_per_step if self.settings.use == "draft" else -measured.perplexity

    def measured_of(self, entry: Mapping[str, Any]) -> Closeness:
        return Closeness(**{own.name: entry[own.name] for own in fields(Closeness)})


def _digest(student: TransformerNetwork) -> list[float]:
    """Return what tells one untrained student from another: the sums of some of its tensors."""
    state = student.state_dict()
    return [float(x.double().sum()) for x in state.values() if x.ndim == 2][-8:]
