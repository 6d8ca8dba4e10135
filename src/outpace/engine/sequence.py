"""One request while it is decoded: its tokens, its place in the cache, its entry in a pass."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from outpace.cache import BlockTable
from outpace.drafters.protocol import Drafter, switched_off
from outpace.drafters.refine.refiner import Refiner
from outpace.engine.stop import Output
from outpace.engine.verify import EXACT_MATCH, Verifier
from outpace.runner import ScheduledSequence
from outpace.trace import Stats, Step
from outpace.types import FinishReason, Request, TokenLogprob


class SequenceState:
    """A request's sequence from its submission to its end. A drafter sees it as its `SequenceView`.

    The engine's thread owns and changes it; a caller reads it under `changed`, or once it is `done`.

    id: a number of its own, in the order of arrival. tokens: prompt and output so far; tokens[table.length:] is
    pending. sources[i]: who drafted output token i (empty: the target wrote it). steps: its trace, if `record`.
    siblings: other samples of its prompt, which fork its table after prefill.
    follow: whether every step notifies `changed`, and not just the last.
    refiner: who writes its text in place of the target: it lays its canvases, and decides on them as a verifier does.
    reuses_cache=False is the textbook baseline without a cache: after every step everything is pending again.
    """

    def __init__(
        self,
        request: Request,
        output: Output,
        *,
        drafter: Drafter | None = None,
        verifier: Verifier = EXACT_MATCH,
        refiner: Refiner | None = None,
        reuses_cache: bool = True,
        record: bool = False,
        follow: bool = False,
        changed: threading.Condition | None = None,
    ) -> None:
        self.id = -1  # until it is submitted
        self.request = request
        self.output = output
        self.drafter = drafter
        self.verifier: Verifier = verifier if refiner is None else refiner
        self.refiner = refiner
        self.reuses_cache = reuses_cache
        self.record = record
        self.follow = follow
        self.changed = changed or threading.Condition()
        self.tokens: list[int] = list(request.prompt)
        self.sources: list[tuple[str, ...]] = []
        self.logprobs: list[TokenLogprob] = []
        self.stats = Stats(prompt_tokens=len(request.prompt))
        self.steps: list[Step] = []
        self.table: BlockTable | None = None  # its keys and values while it runs
        self.siblings: list[SequenceState] = []
        self.error: BaseException | None = None
        self.done = False

    @property
    def num_pending(self) -> int:
        """Tokens that no pass has computed yet."""
        return len(self.tokens) - (self.table.length if self.table is not None else 0)

    @property
    def num_left(self) -> int:
        """The maximum number of tokens that may still be written."""
        return self.output.limit - (len(self.tokens) - len(self.request.prompt))

    def num_slots(self, context: int) -> int:
        """Return how many slots a refiner's canvas takes behind the tokens."""
        return self.refiner.num_slots(len(self.tokens), self.num_left, context) if self.refiner is not None else 0

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the output ended; None before that, and after a failure."""
        return self.output.finish_reason

    def switch_drafter_off(self, error: BaseException) -> None:
        """Go on without a drafter that failed: a draft may cost time, never a text."""
        assert self.drafter is not None
        self.warn(switched_off(self.drafter, error))
        self.drafter = None

    def warn(self, message: str) -> None:
        """Add to what the result says went wrong."""
        self.stats.warnings.append(message)

    def write(self, tokens: list[int], sources: list[tuple[str, ...]], logprobs: list[TokenLogprob]) -> list[int]:
        """Append what a step wrote, up to where the output ends; return what stayed of it."""
        before = len(self.tokens)
        self.tokens += tokens
        self.sources += sources
        self.logprobs += logprobs
        if self.output.extend(tokens) is not None:  # a stop string may also cut what was there before
            count = len(self.output.tokens)
            del self.tokens[len(self.request.prompt) + count :]
            del self.sources[count:]
            del self.logprobs[count:]
        return self.tokens[before:]


@dataclass(slots=True)
class Entry:
    """One sequence in one pass: what the scheduler decided, then what the pass made of it.

    budget: the maximum size of its draft. part: what the network runs. written: the tokens that it wrote.
    """

    sequence: SequenceState
    part: ScheduledSequence
    budget: int = 0
    written: list[int] = field(default_factory=list)
    step: Step | None = None
    error: BaseException | None = None
