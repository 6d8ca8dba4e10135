"""What routing decisions have learned so far, across requests and calls: one per loaded model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from outpace.runner import Runner
from outpace.trace import Step
from outpace.tune.acceptance import Habits
from outpace.tune.calibrate import Calibration, PassProbe
from outpace.tune.cost import Curve, PassCost, load_cost, save_cost
from outpace.types import Request

_CHOOSING_ROWS = (1, 4, 16)  # knots
_WORTH_KEEPING = 100  # passes
_STRIDE = 4  # one pass in so many is learned from
_GAIN = 0.1  # of moving averages
_OUTLIER = 4.0  # times the average: what a single measurement counts for at most


@dataclass(slots=True)
class DrafterCost:
    """Moving averages of asking one drafter for one request: its seconds, the router's own, the nodes proposed."""

    own: float = 0.0
    overhead: float = 0.0
    node_seconds: float = 0.0  # of its own, by proposed node, where it proposed something
    num_asked: int = 0

    @property
    def seconds(self) -> float:
        """Seconds that asking takes in all."""
        return self.own + self.overhead

    def learn(self, seconds: float, nodes: float) -> None:
        """Take in one measurement; the first are averaged."""
        self.num_asked += 1
        if self.num_asked > 3:
            seconds = min(seconds, _OUTLIER * self.own)
        self.own += max(_GAIN, 1.0 / self.num_asked) * (seconds - self.own)
        if nodes:
            self.node_seconds += (_GAIN if self.node_seconds else 1.0) * (seconds / nodes - self.node_seconds)

    def learn_overhead(self, seconds: float) -> None:
        """Take in what the router itself needed for a question."""
        if self.overhead:
            seconds = min(seconds, _OUTLIER * self.overhead)
        self.overhead += (_GAIN if self.overhead else 1.0) * (seconds - self.overhead)


@dataclass(slots=True)
class Experience:
    """Costs and habits. path: where the cost of passes is kept between processes (None: nowhere).

    habits: by drafter and whether the request is greedy. gains: by the same, seconds that asking saved lately.
    """

    path: Path | None = None
    cost: PassCost = field(default_factory=PassCost)
    calibration: Calibration | None = None
    choosing: dict[int, Curve] = field(default_factory=dict)  # by what the pass' requests ask for
    drafters: dict[str, DrafterCost] = field(default_factory=dict)
    habits: dict[tuple[str, bool], Habits] = field(default_factory=dict)
    gains: dict[tuple[str, bool], float] = field(default_factory=dict)
    num_passes: int = 0
    _saved: tuple[float, ...] = ()

    @staticmethod
    def of(runner: Runner, fingerprint: bytes, version: str, folder: Path | None) -> Experience:
        """Return the experience of a model that begins with what earlier processes learned about its passes.

        folder: where cost tables lie, one for each model (`fingerprint`), ops and instruction set, threads, KV
        format and Outpace version; None: nothing is read or kept.
        """
        ops, spec = runner.ops, runner.cache.spec
        of = (fingerprint.hex(), ops.name, getattr(ops, "isa", ""), ops.threads, spec.format, spec.block_size, version)
        path = folder / f"{hashlib.sha256(repr(of).encode()).hexdigest()[:24]}.json" if folder else None
        experience = Experience(path, load_cost(path))
        experience._saved = experience._shape()
        probe = PassProbe(runner)
        experience.calibration = Calibration(experience.cost, probe, probe.long, probe.close)
        return experience

    def wants_pass(self) -> bool:
        """Count a pass; return whether it is one to learn from (learning has a price too)."""
        self.num_passes += 1
        return self.num_passes % _STRIDE == 0 or not self.cost.is_known

    def observe(self, steps: Sequence[Step], demand: int) -> None:
        """Learn the cost of a pass; `demand` as in `demand_of`, of all its requests."""
        first = steps[0]
        if len(steps) != first.batch or any([step.num_pending != 1 for step in steps]):
            return  # a prompt was computed in it too
        parts, times = [(len(step.target_tokens), step.position) for step in steps], first.times
        self.cost.observe(parts, times.forward)
        self.choosing_curve(demand).learn(sum([rows for rows, _ in parts]), times.verify + times.commit)
        if self.calibration is not None:
            self.calibration.earn(_STRIDE * (times.total - times.draft))  # probes are part of draft

    def choosing_curve(self, demand: int) -> Curve:
        """Return the seconds of choosing tokens by rows, for passes of such requests."""
        curve = self.choosing.get(demand)
        if curve is None:
            curve = self.choosing[demand] = Curve(_CHOOSING_ROWS)
        return curve

    def save(self) -> None:
        """Keep the cost of passes for the next process, if it has changed by more than a fifth."""
        shape = self._shape()
        if self.path is None or self.num_passes < _WORTH_KEEPING or not any(self.cost.base.samples[1:]):
            return
        if len(self._saved) != len(shape) or any(
            abs(now - then) > 0.2 * then for now, then in zip(shape, self._saved, strict=True)
        ):
            save_cost(self.cost, self.path)
            self._saved = shape

    def _shape(self) -> tuple[float, ...]:
        return (self.cost.pace, *self.cost.base.values, *self.cost.reach.values)


def demand_of(request: Request) -> int:
    """Return what choosing a token of this request takes, as bits: noise, a history, a mask or processors, logprobs."""
    options, sampling = request.options, request.options.sampling
    return (
        (not sampling.greedy)
        | sampling.penalises << 1
        | (options.constraint is not None or bool(options.logits_processors)) << 2
        | (options.logprobs is not None) << 3
    )
