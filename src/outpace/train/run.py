"""One run of `outpace train` for a drafter: its text, its training, and the check against the real loop.

...          as `stages.py` says
training     training/       checkpoints; log.jsonl
check        check.jsonl     held-out conversations, decoded with the new drafter
             tuned/          of a target that was tuned too: what it writes itself to the held-out prompts
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from outpace.api import LanguageModel
from outpace.errors import UsageError
from outpace.measure.output_file import save
from outpace.measure.progress import Progress
from outpace.models.checkpoint import open_checkpoint
from outpace.train.ledger import Timer
from outpace.train.options import TrainOptions
from outpace.train.report.forecast import Check, Decoded, compare, decode
from outpace.train.stages import TextStages, unseen
from outpace.train.text.corpus import Conversation

if TYPE_CHECKING:
    import torch

    from outpace.train.drafting import Drafting

CHECK, TUNED = "check.jsonl", "tuned"


@dataclass(frozen=True, slots=True)
class Trained:
    """What training brought: the drafter's file, and tokens per step that are forecast, by kind and whether sampled."""

    path: Path
    forecast: dict[tuple[str, bool], float]


class Run:
    """One run of `outpace train` for a drafter, in a folder. tell, shown: as of its text's stages."""

    def __init__(
        self,
        options: TrainOptions,
        folder: Path,
        lm: LanguageModel,
        *,
        tell: Callable[[str], None] = lambda line: None,
        shown: Callable[[], AbstractContextManager[Progress]] = unseen,
    ) -> None:
        self.options, self.folder, self.lm = options, folder, lm
        if options.merge:
            from outpace.train.joint.merged import merged_config

            merged_config(open_checkpoint(lm.path))  # refused now, and not when it has been trained
        self._text = TextStages(options, folder, lm, last=options.until, tell=tell, shown=shown)
        self.given, self.ledger = self._text.given, self._text.ledger

    def conversations(self) -> tuple[Sequence[Conversation], Sequence[Conversation]]:
        """Return what to learn from, and what to measure with; whatever is missing of both is made."""
        return self._text.conversations()

    def stop_behind(self, last: str) -> None:
        """Run what is missing up to a stage of `LAST`; the folder may then go on elsewhere."""
        text, held_out = self.conversations()
        if last == "training":
            self.train(text, held_out)

    # Training.

    def train(self, text: Sequence[Conversation], held_out: Sequence[Conversation]) -> Trained:
        """Return the best drafter of the training, which goes on from its last checkpoint."""
        if not self.ledger.is_done("training"):
            self._train(text, held_out)
        facts = self.ledger.facts("training")
        if "measured" not in facts:
            raise UsageError(f"{self.folder} was trained by an earlier version of Outpace: give another --out")
        return Trained(
            self.folder / facts["path"],
            {
                (row["kind"], row["sampled"]): row["chains"][str(self.options.max_draft)]
                for row in facts["measured"]["rows"]
            },
        )

    def _train(self, text: Sequence[Conversation], held_out: Sequence[Conversation]) -> None:
        from outpace.train.training import drafting_on, learn  # they bring PyTorch

        def prepare(device: torch.device, seconds: float) -> Drafting:
            return drafting_on(device, seconds, self.options, self.lm, text, held_out, self.given.start)

        outcome, facts = learn(self._text, prepare)
        self.ledger.finish("training", **facts)
        before = "" if facts["score_before"] is None else f" ({facts['score_before']:.2f} before)"
        what = "simulated tokens per step"
        if outcome.measured.divergence is not None:
            what += f" x the original's tokens ({outcome.measured.divergence.top1:.1%})"
        self._text.tell(f"training: {outcome.steps} steps; {outcome.score:.2f} {what}{before}")

    # The real loop.

    def check(
        self, trained: Trained, held_out: Sequence[Conversation], opened: Callable[[Path], LanguageModel]
    ) -> Check:
        """Return the forecast beside what the engine makes of it.

        opened: loads the target with a drafter's file, and with the adapter beside it if the target was tuned: then
        both are of the tuned target's own text.
        """
        path, forecast = self.folder / CHECK, trained.forecast
        decoded = [Decoded(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
        if not self.ledger.is_done("check"):
            timer = self._text.begin("check")
            if self.options.joint:
                held_out = self._own_text(trained.path, held_out, opened, timer)
            rest = held_out[len(decoded) :]
            with self._text.shown() as show, closing(self._decode(trained.path, rest, opened)) as results:
                for result in results:
                    decoded.append(result)
                    save(path, "".join(f"{json.dumps(asdict(own))}\n" for own in decoded))
                    timer.keep()
                    show(len(decoded), len(held_out), f"decoding held-out conversations: {len(decoded)}")
            self.ledger.finish("check")
        if self.options.joint:
            forecast = {(kind, sampled): value for kind, sampled, value in self.ledger.facts("check")["forecast"]}
        return compare(forecast, decoded)

    def _own_text(
        self,
        drafter: Path,
        held_out: Sequence[Conversation],
        opened: Callable[[Path], LanguageModel],
        timer: Timer,
    ) -> Sequence[Conversation]:
        """Return what the tuned target writes to the held-out prompts; note what its drafter is to bring there."""
        from outpace.train.joint.own_text import forecast_on, kept, own_text

        lm = opened(drafter)
        with self._text.shown() as show:
            own = own_text(
                lm,
                held_out,
                self.options,
                self.folder / TUNED,
                lambda done, total: show(done, total, f"the tuned target's own text: {done} answered"),
            )
        timer.keep()
        forecast = forecast_on(lm, drafter, self.options.kind, own, self.options.max_draft)
        lm.close()
        rows = [[*key, value] for key, value in forecast.items()]
        self.ledger.note("check", forecast=rows, kept=kept(held_out, own).as_dict())
        return own

    def _decode(
        self, drafter: Path, held_out: Sequence[Conversation], opened: Callable[[Path], LanguageModel]
    ) -> Generator[Decoded, None, None]:
        if held_out:
            lm = opened(drafter)
            yield from decode(lm, held_out, self.options.kind, self.options.max_draft)
            lm.close()
