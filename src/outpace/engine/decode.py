"""The loop: draft -> forward -> verify -> commit. Nothing else in the project decodes.

Plain decoding is this loop with an empty draft; prefill is this loop with many pending tokens. The core sees
only integers: logits stay inside ops. It knows drafters and verifiers by their protocols, and nothing of models, text
or threads. What one request brings along (its drafter, constraint, logits processors) can only fail that request.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from outpace.drafters.protocol import Drafter
from outpace.engine.scheduler import Scheduler
from outpace.engine.sequence import Entry, SequenceState
from outpace.engine.verify import Verifier
from outpace.errors import DrafterError, EngineError
from outpace.runner import Pass, Runner, ScheduledSequence
from outpace.trace import Step, Times
from outpace.types import FinishReason, TokenLogprob
from outpace.types.tree import DraftTree

Batch = list[Entry]


class Decoder:
    """Decode a changing set of sequences in one ragged batch. Not thread-safe: `Engine` gives it a thread."""

    def __init__(
        self,
        runner: Runner,
        *,
        token_budget: int = 256,
        max_running: int = 256,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.runner = runner
        self.scheduler = Scheduler(runner.cache, runner.context, token_budget=token_budget, max_running=max_running)
        self.clock = clock or time.perf_counter
        self._work_clock = None if clock else runner.ops.clock
        self._ids = itertools.count()

    # Sequences come and go.

    def add(self, group: list[SequenceState]) -> None:
        """Queue samples of one prompt. Raises ContextError or CacheError where one could not finish even alone."""
        for sequence in group:
            self.scheduler.check_request(sequence)
        for sequence in group:
            sequence.id = next(self._ids)
        self.scheduler.add(group)

    def cancel(self, sequence: SequenceState) -> None:
        """End a sequence now, with what it has; its blocks are freed."""
        if not sequence.done:
            self._end(sequence, "cancelled")

    def fail(self, error: BaseException) -> None:
        """End every sequence because a pass failed; each gets an EngineError of its own."""
        for sequence in list(self.scheduler.sequences()):
            sequence.error = EngineError(f"the engine failed while it computed a pass: {type(error).__name__}: {error}")
            sequence.error.__cause__ = error
            self._end(sequence, "error")

    def close(self) -> None:
        """Cancel everything."""
        for sequence in list(self.scheduler.sequences()):
            self.cancel(sequence)

    def run(self) -> Iterator[list[Step]]:
        """Step until nothing is left; whatever happens, no block stays taken."""
        try:
            while not self.scheduler.is_idle:
                yield self.step()
        finally:
            self.close()

    # One step.

    def step(self) -> list[Step]:
        """Advance the scheduled sequences by one pass; return a record for each that wrote tokens."""
        marks = [self._now()]
        batch = self.scheduler.schedule()
        self._draft(batch)
        marks.append(self._now())
        passed = self.runner.forward([entry.part for entry in batch], _taps(batch))
        self.runner.ops.synchronize()  # a device may still compute
        marks.append(self._now())
        self._verify(batch, passed)
        marks.append(self._now())
        for entry in batch:
            self._settle(entry)
        marks.append(self._now())
        return self._report(batch, passed, _times(marks, self._work_clock is not None))

    def _now(self) -> tuple[float, float]:
        """Return the time, and that of the ops' clock, where it is looked at."""
        return self.clock(), self._work_clock() if self._work_clock else 0.0

    def _draft(self, batch: Batch) -> None:
        """Ask each drafter for its sequences that are scored in this pass; refiners lay their canvases."""
        for drafter, entries in _by_drafter(entry for entry in batch if entry.part.scored):
            self._propose(drafter, entries)
        for entry in batch:
            refiner = entry.sequence.refiner
            if refiner is not None and entry.part.scored:
                entry.part.canvas = refiner.lay(entry.sequence, entry.sequence.num_left, self.runner.context)

    def _propose(self, drafter: Drafter, entries: Batch) -> None:
        """Give every sequence its tree. A drafter that fails is asked one by one, and switched off where it fails."""
        try:
            trees = drafter.propose([e.sequence for e in entries], [e.budget for e in entries])
            if len(trees) != len(entries):
                raise DrafterError(f"returned {len(trees)} drafts for {len(entries)} sequences")
            for entry, tree in zip(entries, trees, strict=True):
                self._check(entry, tree)
        except Exception as error:
            if len(entries) == 1:
                self._switch_off(entries[0].sequence, error)
                return
            for entry in entries:
                self._propose(drafter, [entry])
        else:
            for entry, tree in zip(entries, trees, strict=True):
                entry.part.tree = tree

    def _check(self, entry: Entry, tree: DraftTree) -> None:
        if not tree.tokens:
            return
        vocab_size = self.runner.model.config.vocab_size
        if len(tree) > entry.budget:
            raise DrafterError(f"drafted {len(tree)} nodes, but the budget was {entry.budget}")
        if not (min(tree.tokens) >= 0 and max(tree.tokens) < vocab_size):
            raise DrafterError(f"drafted token ids outside [0, {vocab_size}): {tree.tokens}")
        entry.sequence.verifier.check(tree, vocab_size)

    def _switch_off(self, sequence: SequenceState, error: BaseException) -> None:
        drafter = sequence.drafter
        if drafter is not None:  # once is enough
            sequence.switch_drafter_off(error)
            with contextlib.suppress(Exception):
                drafter.forget(sequence.id)

    def _verify(self, batch: Batch, passed: Pass) -> None:
        """Decide on every draft. Where that fails, it is tried sequence by sequence, and stays with who failed."""
        todo = _by_verifier(batch)
        while todo:
            verifier, entries = todo.pop()
            parts = [entry.part for entry in entries]
            try:
                self._decide(verifier, passed, parts)
            except Exception as error:
                if len(entries) == 1:
                    entries[0].error = error
                todo += [(verifier, [entry]) for entry in entries if len(entries) > 1]

    def _decide(self, verifier: Verifier, passed: Pass, parts: Sequence[ScheduledSequence]) -> None:
        logits = self.runner.logits_of(passed, parts)
        verifications = verifier.verify(self.runner, logits, parts)
        logprobs = self.runner.logprobs(logits, parts, [v.target_tokens for v in verifications])
        for part, verification, own in zip(parts, verifications, logprobs, strict=True):
            part.verification, part.logprobs = verification, own

    def _settle(self, entry: Entry) -> None:
        """Commit a sequence's part of the pass, or end the sequence with what failed."""
        if entry.error is None:
            try:
                self._commit(entry)
            except Exception as error:
                entry.error = error
        if entry.error is not None:
            entry.sequence.error = entry.error
            self._end(entry.sequence, "error")

    def _commit(self, entry: Entry) -> None:
        """Make the pending tokens and the accepted path the past, and append what was written."""
        sequence, part = entry.sequence, entry.part
        table, num_pending = part.table, part.num_pending
        pending = sequence.tokens[part.start : part.end]
        if part.verification is None:
            table.commit(range(num_pending), pending)
            return
        if part.canvas is not None:
            self._commit_refined(entry, part.verification.target_tokens)
            return
        path, target_tokens = part.verification.path, part.verification.target_tokens
        accepted = [part.tree.tokens[node] for node in path]
        table.commit([*range(num_pending), *(num_pending + node for node in path)], [*pending, *accepted])
        rows = [0, *(node + 1 for node in path)]
        tokens = [*accepted, target_tokens[rows[-1]]]
        sources = [*(part.tree.sources[node] for node in path), ()]
        logprobs = [part.logprobs[row] for row in rows] if part.logprobs is not None else []
        self._write(entry, tokens, sources, logprobs)
        if sequence.finish_reason is None and not sequence.reuses_cache:
            table.truncate(0)

    def _commit_refined(self, entry: Entry, tokens: list[int]) -> None:
        """Remember what was computed as a chain, which the last token is not; append the block, if it is finished."""
        sequence, part = entry.sequence, entry.part
        assert sequence.refiner is not None
        count = part.num_pending - 1 if sequence.reuses_cache else 0
        part.table.commit(range(count), sequence.tokens[part.start : part.start + count])
        if tokens:
            self._write(entry, tokens, [(sequence.refiner.name,)] * len(tokens), [])

    def _write(
        self, entry: Entry, tokens: list[int], sources: list[tuple[str, ...]], logprobs: list[TokenLogprob]
    ) -> None:
        sequence = entry.sequence
        with sequence.changed:
            entry.written = sequence.write(tokens, sources, logprobs)
            if sequence.follow:
                sequence.changed.notify_all()

    def _report(self, batch: Batch, passed: Pass, times: Times) -> list[Step]:
        """Record the pass in each sequence's stats and trace, let drafters learn from it, and end what has ended."""
        for entry in batch:
            entry.sequence.stats.add_pass(times, is_scored=entry.part.scored)
            has_written = entry.part.canvas is None or entry.written
            if entry.part.verification is not None and has_written and entry.error is None:
                self._record(entry, times, len(batch))
        self._learn(batch, passed, times)
        for entry in batch:
            if entry.part.verification is None and entry.error is None:
                self.scheduler.fork(entry.sequence)  # a drafter's keys and values go along
            if entry.sequence.finish_reason is not None and not entry.sequence.done:
                self._end(entry.sequence, entry.sequence.finish_reason)
        return [entry.step for entry in batch if entry.step is not None]

    def _record(self, entry: Entry, times: Times, num_sequences: int) -> None:
        sequence, part = entry.sequence, entry.part
        assert part.verification is not None
        step = entry.step = Step(
            request=sequence.id,
            position=part.end,
            num_pending=part.num_pending,
            tree=part.tree,
            target_tokens=part.verification.target_tokens,
            path=part.verification.path,
            tokens=entry.written,
            times=times,
            batch=num_sequences,
        )
        sequence.stats.add_step(step)
        if sequence.record:
            step.blocks, step.ref_counts = tuple(part.table.blocks), tuple(part.table.ref_counts)
            sequence.steps.append(step)

    def _learn(self, batch: Batch, passed: Pass, times: Times) -> None:
        """Let drafters learn from the pass; what that takes is part of drafting."""
        drafters = _by_drafter(entry for entry in batch if entry.error is None)
        if not drafters:
            return
        (started, own_started) = self._now()
        for drafter, entries in drafters:
            self._observe(drafter, entries, passed)
        (ended, own_ended) = self._now()
        times.draft += ended - started
        if times.worked is not None:
            times.worked.draft += own_ended - own_started
        for entry in batch:
            entry.sequence.stats.add_learning(ended - started)

    def _observe(self, drafter: Drafter, entries: Batch, passed: Pass) -> None:
        """Show a drafter what became of its sequences; one with taps sees prefill too.

        One that fails is switched off for all of them.
        """
        steps = [entry.step for entry in entries if entry.step is not None]
        if not steps and not drafter.taps:
            return
        try:
            drafter.observe(steps, passed.of({entry.sequence.id for entry in entries}) if drafter.taps else passed)
        except Exception as error:
            for entry in entries:
                self._switch_off(entry.sequence, error)

    # The end of a sequence.

    def _end(self, sequence: SequenceState, reason: FinishReason) -> None:
        try:
            self._forget(sequence)
            self.scheduler.remove(sequence)
        finally:
            with sequence.changed:
                sequence.output.finish(reason)
                sequence.done = True
                sequence.changed.notify_all()

    def _forget(self, sequence: SequenceState) -> None:
        if sequence.refiner is not None:
            sequence.refiner.forget(sequence.id)
        if sequence.drafter is None:
            return
        try:
            sequence.drafter.forget(sequence.id)
        except Exception as error:
            sequence.switch_drafter_off(error)


def _times(marks: Sequence[tuple[float, float]], has_work: bool) -> Times:
    """Return what lies between the marks of a step: its parts by either clock."""
    (draft, own_draft), (forward, own_forward), (verify, own_verify), (commit, own_commit) = (
        (after[0] - before[0], after[1] - before[1]) for before, after in itertools.pairwise(marks)
    )
    worked = Times(own_draft, own_forward, own_verify, own_commit) if has_work else None
    return Times(draft, forward, verify, commit, worked)


def _by_drafter(batch: Iterable[Entry]) -> list[tuple[Drafter, Batch]]:
    """Return the sequences of each drafter, in the order of the batch."""
    groups: dict[int, tuple[Drafter, Batch]] = {}
    for entry in batch:
        drafter = entry.sequence.drafter
        if drafter is not None:
            groups.setdefault(id(drafter), (drafter, []))[1].append(entry)
    return list(groups.values())


def _by_verifier(batch: Batch) -> list[tuple[Verifier, Batch]]:
    """Return the scored sequences of each verifier, in the order of the batch."""
    groups: dict[int, tuple[Verifier, Batch]] = {}
    for entry in batch:
        if entry.part.scored:
            verifier = entry.sequence.verifier
            groups.setdefault(id(verifier), (verifier, []))[1].append(entry)
    return list(groups.values())


def _taps(batch: Batch) -> tuple[int, ...]:
    """Return the layers whose hidden states the drafters of this pass want."""
    taps: set[int] = set()
    for entry in batch:
        if entry.sequence.drafter is not None:
            taps.update(entry.sequence.drafter.taps)
    return tuple(sorted(taps))
