"""Who is in the next pass: waiting and running sequences, chunks of prompts, blocks, and preemption.

    waiting --admit--> running --finish-->
       ^                  |
       +-----preempt------+

Sequences are served in the order of arrival; blocks are taken as they are needed. When none is left, the youngest
running sequence is preempted: its table is closed and it waits at the front. Its committed blocks stay in the prefix
index until their room is needed, so it resumes from what is left of them. No token depends on any of this.

**Nobody starves.** Every running sequence is older than every waiting one, and the oldest is never preempted and
computes at least one token in every pass. So a sequence ends after at most as many passes as it and all older ones
have tokens, prompts included.

Knows nothing of drafters, verification or text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from operator import attrgetter

from outpace.cache import BlockTable, Cache
from outpace.engine.sequence import Entry, SequenceState
from outpace.errors import CacheError, ContextError
from outpace.runner import ScheduledSequence

_by_age = attrgetter("id")


class Scheduler:
    """Decide which sequences are in a pass, with which of their tokens, and reserve their slots.

    token_budget: pending tokens in a pass; decoding sequences go first, chunks of prompts fill the rest. It bounds how
    long a long prompt can hold up the others. Draft tokens come on top: they are the drafters' to decide.
    max_running: sequences that run at once.
    """

    def __init__(self, cache: Cache, context: int, *, token_budget: int = 256, max_running: int = 256) -> None:
        self.cache = cache
        self.context = context
        self.token_budget = token_budget
        self.max_running = max_running
        self.waiting: deque[SequenceState] = deque()  # by age; siblings wait inside the first of their group
        self.running: list[SequenceState] = []  # by age
        self._refused_at = -1  # available blocks when the first in the queue was last refused

    def check_request(self, sequence: SequenceState) -> None:
        """Raise ContextError or CacheError for a sequence that could not finish even alone."""
        length = len(sequence.tokens)
        if length >= self.context:
            raise ContextError(
                f"the prompt has {length} tokens, but the context holds {self.context}, with at least one new token: "
                "shorten the prompt"
            )
        size = self.cache.block_size
        overhang = 0 if sequence.refiner is None else sequence.refiner.overhang
        need = -(-(length + sequence.output.limit + overhang) // size) + 1  # + 1: the copy of a shared block
        if need > self.cache.capacity:
            raise CacheError(
                f"this request may need {need} cache blocks of {size} tokens, but the cache holds "
                f"{self.cache.capacity}: lower max_new_tokens, or load the model with larger cache_tokens"
            )

    def add(self, group: list[SequenceState]) -> None:
        """Queue the samples of one prompt; the first leads, and the others share its prefill if it is kept."""
        leader, *siblings = group
        self.waiting.append(leader)
        if leader.reuses_cache:
            leader.siblings = siblings
        else:
            self.waiting.extend(siblings)

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs or waits."""
        return not self.running and not self.waiting

    def sequences(self) -> Iterator[SequenceState]:
        """Return every sequence that has not ended."""
        for sequence in (*self.running, *self.waiting):
            yield sequence
            yield from sequence.siblings

    # What a pass takes.

    def schedule(self) -> list[Entry]:
        """Return the next pass, by age; its slots are reserved, those of the maximum draft (`budget`) included."""
        if self.waiting:
            self._admit()
        ends = self._ends()
        batch: list[Entry] = []
        for sequence in self.running.copy():
            end = ends.get(sequence.id)
            if end is None or sequence.table is None:  # not in this pass, or preempted by now
                continue
            if self._reserve(sequence, sequence.table, end):
                part = ScheduledSequence(sequence.table, sequence.request, sequence.tokens, end, id=sequence.id)
                batch.append(Entry(sequence, part))
        for entry in batch:
            if entry.part.scored and entry.sequence.drafter is not None:
                self._reserve_draft(entry)
        return batch

    def _admit(self) -> None:
        """Start waiting sequences in order of arrival, while what is pending of them fits the cache.

        One block for every running sequence stays free, so that the next step does not preempt what this one admits.
        """
        available = self.cache.num_available
        if self.running and available <= self._refused_at:
            return
        while self.waiting and len(self.running) < self.max_running:
            sequence = self.waiting[0]
            table = self.cache.open(
                sequence.tokens if sequence.reuses_cache else (),
                sequence.request.options.salt,
                is_tapped=sequence.drafter is not None and bool(sequence.drafter.taps),
            )
            pending = len(sequence.tokens) - table.length + sequence.num_slots(self.context)
            need = table.blocks_for(pending) + len(self.running)
            if self.running and need > self.cache.num_available:
                table.close()
                self._refused_at = available
                return
            sequence.table = table
            if not sequence.stats.steps:
                sequence.stats.cached_tokens = table.length
            self._insert([self.waiting.popleft()])
            self.fork(sequence)  # where nothing but its last token is pending
        self._refused_at = -1

    def _ends(self) -> dict[int, int]:
        """Return up to which of its tokens each sequence in the next pass is computed, by id."""
        ends: dict[int, int] = {}
        prefilling: list[SequenceState] = []
        left = self.token_budget
        for sequence in self.running:
            if sequence.num_pending == 1 or not sequence.reuses_cache:
                ends[sequence.id] = len(sequence.tokens)
                left -= 1
            else:
                prefilling.append(sequence)
        for sequence in prefilling:
            if left <= 0 and sequence is not self.running[0]:
                break
            assert sequence.table is not None
            start, length = sequence.table.length, len(sequence.tokens)
            end = min(length, start + max(left, 1))
            if sequence.siblings and start + 1 < length:
                end = min(end, length - 1)  # prefill all but the last token, then fork
            ends[sequence.id] = end
            left -= end - start
        return ends

    def _reserve(self, sequence: SequenceState, table: BlockTable, end: int) -> bool:
        """Reserve the slots of tokens[table.length:end], and of a canvas behind the last one, whatever it takes.

        The youngest are preempted until there is room. Returns whether there is; if not, the sequence was the youngest.
        """
        count = end - table.length
        if end == len(sequence.tokens):
            count += sequence.num_slots(self.context)
        while table.blocks_for(count) > self.cache.num_available:
            youngest = self.running[-1]
            assert youngest is not self.running[0], "a sequence alone always fits: `check_request` made sure"
            self.preempt(youngest)
            if youngest is sequence:
                return False
        table.reserve(count)
        return True

    def _reserve_draft(self, entry: Entry) -> None:
        """Reserve slots of a draft too: as many as may be asked for, and as there are blocks for."""
        sequence, table = entry.sequence, entry.part.table
        num_pending = entry.part.num_pending
        budget = min(sequence.request.max_draft, sequence.num_left - 1)
        while budget > 0 and table.blocks_for(num_pending + budget) > self.cache.num_available:
            budget -= 1
        if budget > 0:
            table.reserve(num_pending + budget)
            entry.budget = budget

    def preempt(self, sequence: SequenceState) -> None:
        """Take a running sequence's blocks away; it waits at the front."""
        assert sequence.table is not None
        sequence.table.close()
        sequence.table = None
        sequence.stats.preemptions += 1
        self.running.remove(sequence)
        self.waiting.appendleft(sequence)

    def _insert(self, sequences: Iterable[SequenceState]) -> None:
        self.running += sequences
        self.running.sort(key=_by_age)

    # What a pass leads to.

    def fork(self, leader: SequenceState) -> None:
        """Once all but the last prompt token is prefilled, let the other samples of the prompt start from there."""
        assert leader.table is not None
        if not leader.siblings or leader.num_pending > 1:
            return
        for sibling in leader.siblings:
            sibling.table = leader.table.fork()
            sibling.stats.cached_tokens = leader.stats.cached_tokens
        self._insert(leader.siblings)
        leader.siblings = []

    def remove(self, sequence: SequenceState) -> None:
        """Take out a sequence that has ended; its blocks are free then."""
        heir = self._next_leader(sequence)
        if sequence.table is not None:
            if heir is not None:
                sequence.table.truncate(sequence.table.length)  # provisional slots belong to one table
                heir.table = sequence.table.fork()
                self._insert([heir])
            sequence.table.close()
            sequence.table = None
            self.running.remove(sequence)
        elif sequence in self.waiting:
            place = self.waiting.index(sequence)
            del self.waiting[place]
            if heir is not None:
                self.waiting.insert(place, heir)
        else:
            for leader in (*self.running, *self.waiting):
                if sequence in leader.siblings:
                    leader.siblings.remove(sequence)
        self._refused_at = -1

    @staticmethod
    def _next_leader(leader: SequenceState) -> SequenceState | None:
        """Return who leads the samples that still wait for this one's prefill; it takes over its place."""
        if not leader.siblings:
            return None
        heir, *heir.siblings = leader.siblings
        leader.siblings = []
        return heir

    def check(self) -> None:
        """Assert the invariants: order by age, who holds blocks, and those of the cache."""
        ids = [sequence.id for sequence in self.running]
        assert ids == sorted(ids)
        assert all(sequence.table is not None for sequence in self.running)
        assert all(sequence.table is None for sequence in self.waiting)
        waiting = [sequence.id for sequence in self.waiting]
        assert waiting == sorted(waiting), "the queue is in the order of arrival"
        assert not ids or not waiting or ids[-1] < waiting[0], "whoever runs is older than whoever waits"
        self.cache.check()
