"""What routing decisions have learned so far, across requests and calls: one per loaded model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from outpace.drafters.router.acceptance import CALIBRATED_VARIANCE, VARIANCE, Counts
from outpace.drafters.router.averages import STEADY, Gain, LinearCost
from outpace.drafters.router.calibrate import Calibration, PassProbe
from outpace.drafters.router.cost import NOISE, PassCost, load_cost, save_cost
from outpace.runner import Runner
from outpace.trace import Step
from outpace.types import Request

_STRIDE = 4  # one plain pass in so many is learned from: learning has a price too


@dataclass(slots=True)
class DrafterRecord:
    """What is known of one drafter across requests, for greedy or for sampled ones."""

    counts: Counts = field(default_factory=Counts)
    alone: Gain = field(default_factory=Gain)  # of its last request
    extra: Gain = field(default_factory=Gain)  # the same, beside the leading drafter
    variance: float = VARIANCE  # of log-odds between requests

    @staticmethod
    def of(is_calibrated: bool) -> DrafterRecord:
        """Return the record of a drafter that nobody has asked; is_calibrated: its confidence holds text by text."""
        if is_calibrated:
            return DrafterRecord(Counts(is_calibrated=True), Gain(STEADY), Gain(STEADY), CALIBRATED_VARIANCE)
        return DrafterRecord()


@dataclass(slots=True)
class DrafterCost:
    """Seconds of asking one drafter for one request, the router's own included."""

    question: LinearCost = field(default_factory=LinearCost)  # by the nodes that it is asked for
    reading: LinearCost = field(default_factory=LinearCost)  # by the tokens of a request that it has not seen before
    is_timed: bool = False  # or what is known of a question was only expected

    @staticmethod
    def of(is_one_pass: bool) -> DrafterCost:
        """Return the cost of a drafter that nobody has asked; is_one_pass: all its nodes come at once."""
        return DrafterCost(LinearCost(is_flat=is_one_pass))


@dataclass(slots=True)
class Experience:
    """Costs and acceptance. path: where the cost of passes is kept between processes (None: nowhere)."""

    path: Path | None = None
    cost: PassCost = field(default_factory=PassCost)
    calibration: Calibration | None = None
    sampling: dict[int, LinearCost] = field(default_factory=dict)  # by `sampling_kind`: seconds by rows
    drafters: dict[str, DrafterCost] = field(default_factory=dict)
    records: dict[tuple[str, bool], DrafterRecord] = field(default_factory=dict)  # by drafter, and greedy or not
    num_passes: int = 0
    _saved: dict[int, float] = field(default_factory=dict)

    @staticmethod
    def of(runner: Runner, fingerprint: bytes, version: str, folder: Path | None) -> Experience:
        """Return the experience of a model that begins with what earlier processes learned about its passes.

        folder: where cost tables lie, one for each model (`fingerprint`), ops and instruction set, threads, KV
        format and Outpace version; None: nothing is read or kept.
        """
        ops, spec = runner.ops, runner.cache.spec
        of = (fingerprint.hex(), ops.name, ops.isa, ops.threads, spec.format, spec.block_size, version)
        path = folder / f"{hashlib.sha256(repr(of).encode()).hexdigest()[:24]}.json" if folder else None
        experience = Experience(path, load_cost(path))
        probe = PassProbe(runner)
        experience.calibration = Calibration(experience.cost, probe, probe.long, probe.close, ops.clock)
        return experience

    def observe(self, steps: Sequence[Step], kind: int) -> None:
        """Learn what a pass cost that only decoded these requests; kind: `sampling_kind` of all of them."""
        first = steps[0]
        self.num_passes += 1
        num_rows = len(steps) + sum([len(step.tree) for step in steps])
        if num_rows == len(steps) and self.num_passes % _STRIDE and self.cost.is_known:
            return
        if len(steps) != first.batch or any([step.num_pending != 1 for step in steps]):
            return  # it also computed a prompt, or requests of others
        times = first.times.worked or first.times
        self.cost.observe([(1 + len(step.tree), step.position) for step in steps], times.forward)
        self.sampling_cost(kind).learn(num_rows, times.verify + times.commit)
        if self.calibration is not None:
            weight = _STRIDE if num_rows == len(steps) else 1
            self.calibration.earn(weight * (times.total - times.draft))  # probes are part of draft

    def sampling_cost(self, kind: int) -> LinearCost:
        """Return the seconds of sampling by rows, for passes of such requests."""
        cost = self.sampling.get(kind)
        if cost is None:
            cost = self.sampling[kind] = LinearCost()
        return cost

    def save(self) -> None:
        """Keep the ratios that were measured for the next process, where they say something new."""
        ratios = {int(rows): known["ratio"] for rows, known in self.cost.as_dict()["rows"].items()}
        if self.path is None or all(
            abs(ratio - self._saved.get(rows, 0.0)) <= NOISE * ratio for rows, ratio in ratios.items()
        ):
            return
        save_cost(self.cost, self.path)
        self._saved = ratios


def sampling_kind(request: Request) -> int:
    """Return what sampling a token of this request takes, as bits: noise, a history, a mask or processors, logprobs."""
    options, sampling = request.options, request.options.sampling
    return (
        (not sampling.greedy)
        | sampling.penalises << 1
        | (options.constraint is not None or bool(options.logits_processors)) << 2
        | (options.logprobs is not None) << 3
    )
