"""The stages that make a run's text, each kept in the run's folder as it goes, and skipped where it is finished.

    prompts      prompts/*.jsonl -> prompts.jsonl, held-out.jsonl     (with --texts: texts/, a corpus)
    held-out     held-out/       conversations to measure with, written by the target
    responses    responses/      conversations to learn from, written by the target

Files appear whole or not at all, and `run.json` says what is finished (`ledger.py`). A run that was killed goes on
where it was; what depends on counts, and not on time, becomes the same as without the kill, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from outpace.api import LanguageModel
from outpace.errors import UsageError
from outpace.measure.output_file import save
from outpace.measure.progress import Progress
from outpace.train.given import ENGINE, Given
from outpace.train.ledger import Ledger, Timer
from outpace.train.options import RunOptions, budget_seconds
from outpace.train.text import prompts, texts
from outpace.train.text.answers import in_order
from outpace.train.text.corpus import Conversation, Corpus
from outpace.train.text.duplicates import Seen
from outpace.train.text.prompts import Prompt
from outpace.train.text.responses import Beginning, Job, Responder, Source, jobs_of
from outpace.train.text.sources import Sources, Writer, some_of, sort_out, spread, without_duplicates

if TYPE_CHECKING:
    pass

ROUNDS = 4  # times that a prompt is answered at most, where the budget says how many responses there are
LOG = "log.jsonl"
_PER_SHARD, _PER_SHARD_ACCELERATED = 32, 8192  # prompts answered
KEEP_SECONDS = 10.0  # after which the time of a stage is written down


@contextmanager
def unseen() -> Generator[Progress, None, None]:
    """Show nobody how far a stage is."""
    yield lambda done, total, what: None


class TextStages:
    """The stages that make text, in a run's folder. tell(line): what a stage has brought. shown: how far each stage is.

    last: the stage behind which the run stops, which its budget is shared up to (None: the last one).
    """

    def __init__(
        self,
        options: RunOptions,
        folder: Path,
        lm: LanguageModel,
        *,
        last: str | None = None,
        tell: Callable[[str], None] = lambda line: None,
        shown: Callable[[], AbstractContextManager[Progress]] = unseen,
    ) -> None:
        self.options, self.folder, self.lm = options, folder, lm
        self.tell, self.shown, self._last = tell, shown, last
        self.given = Given.of(options, lm)
        folder.mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger.open(folder, self.given.made_with, only_for_text=ENGINE)

    def begin(self, stage: str) -> Timer:
        """Start a stage's clock, or go on with it."""
        return self.ledger.begin(stage, budget_seconds(self.options.budget), self._last)

    def conversations(self) -> tuple[Sequence[Conversation], Sequence[Conversation]]:
        """Return what to learn from, and what to measure with; whatever is missing of both is made."""
        train, held_out = self._written() if self.options.texts is None else self._given()
        if not len(train) or not len(held_out):
            raise UsageError(
                f"there are {len(train)} conversations to learn from and {len(held_out)} to measure with: give more "
                "text, or another --held-out"
            )
        return train, held_out

    def _written(self) -> tuple[Sequence[Conversation], Sequence[Conversation]]:
        """Return what the target writes to prompts."""
        if self.ledger.is_done("held-out") and self.ledger.is_done("responses"):
            return self._corpus("responses"), self._corpus("held-out")
        sources = self.sources()
        held_out = self._answers("held-out", sources.held_out, len(sources.held_out))
        return self._answers("responses", sources.train, self.options.num_responses), held_out

    def _given(self) -> tuple[Sequence[Conversation], Sequence[Conversation]]:
        """Return the user's text, and what the target makes of the beginnings of its held-out part."""
        corpus = self.given.corpus
        if corpus is None:
            corpus = self._tokenised()
        elif not self.ledger.is_done("prompts"):
            self.ledger.finish("prompts", sequences=len(corpus))
        # Another seed than that of prompts: the responses of a run are those whose prompts that one does not hold out.
        train, aside = corpus.split(self.options.held_out, self.options.seed + 1)
        limit = self.options.max_prompt_tokens
        beginnings: list[Source] = [
            (Beginning(tuple(texts.beginning(own, limit)), own.kind), own.key)
            for own in some_of(aside, 8 * self.options.num_checked)
        ]
        chosen = spread(beginnings, self.options.num_checked)
        held_out = self._answers("held-out", chosen, len(chosen))
        self.ledger.finish("responses")
        return train, held_out

    def sources(self) -> Sources:
        """Return the prompts to answer, made ready once and then read from their files."""
        train, held_out = self.folder / "prompts.jsonl", self.folder / "held-out.jsonl"
        if not self.ledger.is_done("prompts"):
            timer = self.begin("prompts")
            found, dropped = self._found(timer)
            sources = sort_out(
                found,
                self.lm.tokenizer,
                excluded=self.given.excluded,
                max_prompt_tokens=self.options.max_prompt_tokens,
                held_out=self.options.held_out,
                num_checked=self.options.num_checked,
                seed=self.options.seed,
            )
            dropped |= sources.dropped
            for path, own in ((train, sources.train), (held_out, sources.held_out)):
                save(path, "".join(f"{prompt.to_json()}\n" for prompt, _ in own if isinstance(prompt, Prompt)))
            timer.keep()
            self.ledger.finish("prompts", train=len(sources.train), held_out=len(sources.held_out), dropped=dropped)
            left_out = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
            self.tell(
                f"prompts: {len(sources.train)} to train on, {len(sources.held_out)} held out"
                + (f"; left out: {left_out}" if left_out else "")
            )
        keyed = [
            [(prompt, self.given.key(prompt)) for prompt in prompts.read_prompts(path)] for path in (train, held_out)
        ]
        return Sources(list(keyed[0]), list(keyed[1]), self.ledger.facts("prompts")["dropped"])

    def _found(self, timer: Timer) -> tuple[list[Prompt], dict[str, int]]:
        """Return the user's prompts, or the target's, without duplicates, and how many were not taken."""
        if self.options.prompts is not None:
            return without_duplicates(self.given.prompts, Seen())
        writer = Writer(self.lm, self.folder / "prompts", self.options.seed)
        count = self.options.num_prompts
        go_on = (lambda: timer.is_left) if count is None else (lambda: True)
        with self.shown() as show, closing(writer.write(count, go_on, self.options.batch)) as numbers:
            show(*_state(timer, len(writer.prompts), count), f"writing prompts: {len(writer.prompts)}")
            for number in numbers:
                timer.keep(at_least=KEEP_SECONDS)
                show(*_state(timer, number, count), f"writing prompts: {number}")
        timer.keep()
        return writer.prompts, dict(writer.dropped)

    def _tokenised(self) -> Corpus:
        """Return the user's texts as a corpus."""
        corpus = self._corpus("texts")
        if not self.ledger.is_done("prompts"):
            timer = self.begin("prompts")
            with self.shown() as show:
                for number in texts.fill(corpus, self.given.texts, self.lm.tokenizer):
                    timer.keep()
                    show(number, len(self.given.texts), f"tokenising texts: {number}")
            self.ledger.finish("prompts", texts=len(self.given.texts), sequences=len(corpus))
            self.tell(f"texts: {len(corpus)} sequences, {corpus.num_learned} tokens to learn")
        return corpus

    def _answers(self, stage: str, sources: Sequence[Source], count: int | None) -> Corpus:
        """Return the corpus of a stage, with `count` prompts answered, or as many as its time allows."""
        corpus = self._corpus(stage)
        if self.ledger.is_done(stage):
            return corpus
        timer = self.begin(stage)
        total = ROUNDS * len(sources) if count is None else count
        jobs = jobs_of(sources, total, self.options.seed, corpus.num_sources)
        go_on = (lambda: timer.is_left) if count is None else (lambda: True)
        answers, per_shard, facts = self._answering(stage, jobs, go_on)
        pending: list[tuple[Job, list[Conversation]]] = []
        with self.shown() as show, closing(answers) as results:
            show(*_state(timer, corpus.num_sources, count), f"{stage}: {corpus.num_sources} answered")
            for result in results:
                pending.append(result)
                if len(pending) == per_shard:
                    self._append(corpus, pending, timer)
                    pending = []
                show(
                    *_state(timer, corpus.num_sources + len(pending), count),
                    f"{stage}: {corpus.num_sources + len(pending)} answered",
                )
        if pending:
            self._append(corpus, pending, timer)
        self.ledger.finish(stage, conversations=len(corpus), tokens=corpus.num_learned, **facts)
        sampled = sum(own.sampled for own in corpus)
        self.tell(f"{stage}: {len(corpus)} conversations, {sampled} of them sampled; {corpus.num_learned} tokens")
        return corpus

    def _answering(
        self, stage: str, jobs: Iterator[Job], go_on: Callable[[], bool]
    ) -> tuple[Generator[tuple[Job, list[Conversation]], None, None], int, dict[str, str]]:
        """Return what answers, how many answers make a shard, and what the run's record says of who answered.

        Held-out text is the engine's own: what drafters are measured on is what they meet.
        """
        limits = self.options.max_tokens, self.options.max_prompt_tokens
        if stage == "responses":
            from outpace.train.answering import writer_on  # it brings PyTorch

            writer = writer_on(self.lm, self.options.device, *limits)
            if writer is not None:
                return writer.answers(jobs, go_on), _PER_SHARD_ACCELERATED, {"written_by": writer.name}
        responder = Responder(self.lm, *limits)
        answers = in_order(self.lm, jobs, lambda job: (job, responder.answer(job)), self.options.batch, go_on)
        return answers, _PER_SHARD, {}

    def _append(self, corpus: Corpus, answered: Sequence[tuple[Job, list[Conversation]]], timer: Timer) -> None:
        found = [conversation for _, own in answered for conversation in own]
        keys = [job.key for job, own in answered for _ in own]
        corpus.append(found, keys=keys, num_sources=len(answered))
        timer.keep()

    def _corpus(self, name: str) -> Corpus:
        folder = self.folder / name
        if Corpus.is_one(folder):
            return Corpus.open(folder)
        return Corpus.create(folder, self.lm.tokenizer.fingerprint, self.lm.config.vocab_size)


def _state(timer: Timer, done: int, count: int | None) -> tuple[int, int]:
    """Return how far a stage is, out of how much: by count where there is one, else by time."""
    if count is None:
        return int(min(timer.taken, timer.allowed) * 1000), int(timer.allowed * 1000)
    return min(done, count), count
