"""What a drafter learns: to guess what its target says next, several tokens deep, from the target's hidden states."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from outpace.errors import UsageError, one_of
from outpace.train.batch import Plan, look
from outpace.train.build import NETWORKS, build_network, fresh_network
from outpace.train.export import export, read_network
from outpace.train.joint.measure import Divergence
from outpace.train.losses import draft_loss, target_probs
from outpace.train.networks.network import DraftNetwork
from outpace.train.objective import StepLosses, adamw, muon
from outpace.train.settings import TrainSettings
from outpace.train.simulate import BUDGETS, SCORED, Row, Simulation, simulate
from outpace.train.target import FrozenTarget
from outpace.train.text.corpus import Conversation
from outpace.weights.trained import Entries

_LISTS = ("head", "masks")  # matrices that are lists of vectors: nothing is multiplied by their columns together
_CONTINUED_PEAK = 0.3  # of the recipe's learning rates: more would first undo what the drafter knows


@dataclass(frozen=True, slots=True)
class Drafted:
    """What a drafter brings on held-out text, simulated. divergence: of the target, if that was tuned beside it.

    The score is the mean of the tokens per step, times the share of tokens that are the original's, where the target
    was tuned: what is gained elsewhere is no gain.
    """

    rows: tuple[Row, ...]
    divergence: Divergence | None = None

    @property
    def simulation(self) -> Simulation:
        """The rows, as `simulate` returns them."""
        return Simulation(self.rows)


def is_accelerator(device: torch.device) -> bool:
    """Whether a device works beside the host: batches are made ahead, in bfloat16, and losses are read now and then."""
    return device.type != "cpu"


class Drafting:
    """The objective (`objective.Objective`) of a drafter, whatever its kind, over a target that stays as it is."""

    result = "drafter.gguf"

    def __init__(
        self,
        kind: str,
        settings: TrainSettings,
        text: Sequence[Conversation],
        held_out: Sequence[Conversation],
        target: FrozenTarget,
        start: Path | None = None,
    ) -> None:
        """Take what there is to learn from. start: a drafter's file to begin with.

        Raises UsageError for an unknown kind, or if drafters could not be measured.
        """
        one_of("kind", kind, NETWORKS)
        if not any(len(own.tokens) >= own.num_prompt + 2 for own in held_out):
            raise UsageError("there is no held-out text to measure drafters on: hold out more, or give more text")
        self.settings, self.text, self.target = settings, text, target
        self._kind, self._held_out, self._start = kind, held_out, start
        self.beginning: Literal["unmeasured", "kept"] = "unmeasured" if start is None else "kept"
        self.is_accelerated = is_accelerator(target.device)
        self.peak = settings.peak or (1.0 if start is None else _CONTINUED_PEAK)
        self._dtype = torch.bfloat16 if self.is_accelerated else torch.float32

    def made_with(self) -> dict[str, Any]:
        return {
            "kind": self._kind,
            "target": self.target.identity.fingerprint,
            "start": None if self._start is None else hashlib.sha256(self._start.read_bytes()).hexdigest(),
        }

    # The network.

    def begin(self) -> None:
        if self._start is None:
            self._take(fresh_network(self._kind, self.target, self.text, self.settings))
        else:
            self._take(read_network(self._start, self._kind, self.target))

    def load(self, state: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        self._take(build_network(self._kind, Entries(numbers, "the checkpoint"), state, self.target))

    def _take(self, network: DraftNetwork) -> None:
        self.network = network
        self._head_tokens = torch.tensor(network.head_tokens, device=self.target.device)

    def state(self) -> dict[str, Tensor]:
        return dict(self.network.state_dict())

    def numbers(self) -> dict[str, Any]:
        return self.network.numbers()

    # Learning.

    def parameters(self) -> list[nn.Parameter]:
        return list(self.network.parameters())

    def optimisers(self) -> list[torch.optim.Optimizer]:
        return optimisers_of(self.network, self.settings)

    def paces(self, done: float) -> Sequence[float]:
        return 1.0, 1.0

    def plan(self, step: int, places: Sequence[int]) -> Plan | None:
        network, is_accelerated = self.network, self.is_accelerated
        rng = np.random.default_rng([self.settings.seed, 1, step]) if network.share < 1 else None
        chosen = [self.text[i] for i in places]
        plan = Plan.of(chosen, network.num_depths, rng, network.share, is_aligned=is_accelerated)
        return plan.pinned() if plan is not None and is_accelerated else plan

    def losses(self, plan: Plan, done: float) -> StepLosses:
        batch = look(plan, self.target, self.network.taps)
        probs = target_probs(self.target, batch.final, self._head_tokens, self._dtype)
        with torch.autocast(self.target.device.type, self._dtype, enabled=self._dtype != torch.float32):
            found = draft_loss(self.network, batch, probs, self._head_tokens)
        return StepLosses(found.total, batch.num_learned, found.parts)

    # Measuring and keeping.

    def write_first(self, path: Path) -> None:
        assert self._start is not None
        shutil.copyfile(self._start, path)

    def write(self, path: Path) -> None:
        self.network.calibrate(self.target, self._held_out)
        export(self.network, self.target.identity, path, self.settings.format)

    def measure(self, path: Path) -> Drafted:
        return self.measure_for(path, (SCORED,))

    def measure_for(self, path: Path, budgets: Sequence[int]) -> Drafted:
        """Return what a drafter's file brings, with drafts of at most so many tokens."""
        network = read_network(path, self._kind, self.target)
        return Drafted(simulate(network, self.target, self._held_out, budgets=budgets).rows)

    def measure_in_full(self, path: Path, best: Drafted) -> Drafted:
        return self.measure_for(path, BUDGETS)

    def score(self, measured: Drafted) -> float:
        simulated = measured.simulation.mean(SCORED)
        return simulated if measured.divergence is None else simulated * measured.divergence.top1

    def measured_of(self, entry: Mapping[str, Any]) -> Drafted:
        divergence = entry["divergence"]
        rows = tuple(Row(**row) for row in entry["rows"])
        return Drafted(rows, None if divergence is None else Divergence(**divergence))


def optimisers_of(network: DraftNetwork, settings: TrainSettings) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices, AdamW for vectors and head."""
    named = list(network.named_parameters())
    matrices = [x for name, x in named if x.ndim == 2 and name not in _LISTS]
    vectors: list[Tensor] = [x for name, x in named if x.ndim == 1 or name == "masks"]
    groups: list[tuple[list[Tensor], float]] = [(vectors, settings.vector_rate)]
    if network.head.requires_grad:
        groups.append(([network.head], settings.head_rate))
    return [muon(matrices, settings.matrix_rate), adamw(groups)]
