"""The loop: draft -> forward -> verify -> commit. Nothing else in the project decodes.

Plain decoding is this loop with an empty draft; prefill is this loop with many pending tokens. The core sees
only integers: logits stay inside ops. It knows one drafter and one rule, and nothing of models, text or servers.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from outpace.cache import BlockTable
from outpace.drafters.protocol import Drafter
from outpace.engine.stop import Output
from outpace.engine.verify import Rule, Walk
from outpace.errors import CacheError, ContextError, DrafterError
from outpace.runner import Runner, ScheduledSequence
from outpace.trace import Stats, Step, Times
from outpace.tree import DraftTree, Verification
from outpace.types import FinishReason, Request, TokenLogprob


class Generation:
    """One request while it is decoded, and its result once `finish` is set.

    tokens: prompt and output so far; tokens[table.length:] is pending. sources[i]: who drafted output token i
    (empty: the target wrote it). A drafter sees it as its `SequenceView`.
    """

    def __init__(self, number: int, request: Request, output: Output, context: int) -> None:
        self.id = number
        self.request = request
        self.output = output
        self.longest = min(len(request.prompt) + request.max_new_tokens, context)
        self.tokens: list[int] = list(request.prompt)
        self.sources: list[tuple[str, ...]] = []
        self.logprobs: list[TokenLogprob] = []
        self.stats = Stats(prompt_tokens=len(request.prompt))
        self.finish: FinishReason | None = None
        self.table: BlockTable | None = None  # its KV while it runs
        self.siblings: list[Generation] = []  # other samples of its prompt: they fork its table after prefill

    @property
    def num_left(self) -> int:
        """Most tokens that may still be written."""
        return self.longest - len(self.tokens)

    def keep(self, count: int) -> None:
        """Cut everything that runs along the output to its first `count` tokens."""
        del self.tokens[len(self.request.prompt) + count :]
        del self.sources[count:]
        del self.logprobs[count:]


class Decoder:
    """Decode a changing set of requests in one ragged batch.

    keep_past=False is the textbook baseline without a cache: after every step everything is pending again.
    """

    def __init__(
        self,
        runner: Runner,
        drafter: Drafter | None = None,
        rule: Rule | None = None,
        *,
        chunk: int = 256,
        keep_past: bool = True,
        record_blocks: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.runner = runner
        self.drafter = drafter
        self.rule = rule or Walk()
        self.chunk = chunk if keep_past else runner.context  # prefill tokens in a pass: bounds its latency
        self.keep_past = keep_past
        self.record_blocks = record_blocks
        self.clock = clock
        self.waiting: deque[Generation] = deque()
        self.running: list[Generation] = []
        self._numbers = itertools.count()

    # -- requests come and go --------------------------------------------------------------------

    def add(self, requests: Sequence[Request], outputs: Sequence[Output]) -> list[Generation]:
        """Queue samples of one prompt (they share its prefill) and return what they will grow in.

        Raises ContextError for a prompt that leaves no room for a token, CacheError for one that cannot fit.
        """
        group = [
            Generation(next(self._numbers), request, output, self.runner.context)
            for request, output in zip(requests, outputs, strict=True)
        ]
        leader = group[0]
        if len(leader.tokens) >= self.runner.context:
            raise ContextError(
                f"the prompt has {len(leader.tokens)} tokens, but this model's context holds {self.runner.context} "
                "with at least one new token: shorten the prompt, or load the model with a larger context"
            )
        leader.siblings = group[1:]
        if (need := self._most_blocks(leader)) > self.runner.cache.capacity:
            raise CacheError(
                f"this request may need {need} cache blocks of {self.runner.cache.block_size} tokens, but the cache "
                f"holds {self.runner.cache.capacity}: lower max_new_tokens or n, or load with a larger kv_memory"
            )
        self.waiting.append(leader)
        return group

    def cancel(self, generation: Generation) -> None:
        """End a request now, with what it has; its blocks are freed."""
        if generation.finish is None:
            self._end(generation, "cancelled")
            self._forget(generation)

    def close(self) -> None:
        """Cancel everything."""
        for leader in (*self.running, *self.waiting):
            for generation in (*leader.siblings, leader):
                self.cancel(generation)

    def run(self) -> Iterator[list[Step]]:
        """Step until nothing is left; whatever happens, no block stays taken."""
        try:
            while self.running or self.waiting:
                yield self.step()
        finally:
            self.close()

    # -- one step --------------------------------------------------------------------------------

    def step(self) -> list[Step]:
        """Advance every running request by one pass; return a record for each that wrote tokens."""
        self._admit()
        started = self.clock()
        batch = self._schedule()
        self._draft(batch)
        drafted = self.clock()
        logits = self.runner.forward(batch).logits
        forwarded = self.clock()
        verifications = self.rule.verify(self.runner, logits, batch)
        logprobs = self.runner.logprobs(logits, batch, [v.target_tokens for v in verifications])
        verified = self.clock()
        running = list(self.running)
        for g, s, verification, own in zip(running, batch, verifications, logprobs, strict=True):
            s.verification, s.logprobs = verification, own
            self._commit(g, s, verification)
        done = self.clock()
        times = Times(drafted - started, forwarded - drafted, verified - forwarded, done - verified)
        return self._report(running, batch, verifications, times)

    def _admit(self) -> None:
        """Start waiting requests, in order, while even their longest outputs fit the cache."""
        taken = sum(map(self._most_blocks, self.running))
        while self.waiting:
            leader = self.waiting[0]
            taken += self._most_blocks(leader)
            if taken > self.runner.cache.capacity:
                return
            leader.table = self.runner.cache.open(leader.tokens if self.keep_past else (), leader.request.salt)
            leader.stats.cached_tokens = leader.table.length
            self.running.append(self.waiting.popleft())

    def _most_blocks(self, leader: Generation) -> int:
        """Return the most blocks that a request and the siblings that wait for it may ever hold."""
        size = self.runner.cache.block_size
        return sum(
            -(-(g.longest + g.request.max_draft) // size) + 1  # + 1: the copy of a shared block
            for g in (leader, *leader.siblings)
        )

    def _schedule(self) -> list[ScheduledSequence]:
        """Return what each running request puts into this pass: a chunk of its prompt, or its pending tokens."""
        room = self.chunk
        batch = []
        for g in self.running:
            assert g.table is not None
            end = min(len(g.tokens), g.table.length + max(room, 1))
            if g.siblings and g.table.length + 1 < len(g.tokens):
                end = min(end, len(g.tokens) - 1)  # prefill all but the last prompt token, then fork
            room -= end - g.table.length
            batch.append(ScheduledSequence(g.table, g.request, g.tokens, end))
        return batch

    def _draft(self, batch: Sequence[ScheduledSequence]) -> None:
        """Ask the drafter for a draft of every request that is scored in this pass."""
        scored = [i for i, s in enumerate(batch) if s.scored]
        if self.drafter is None or not scored:
            return
        sequences = [self.running[i] for i in scored]
        budgets = [max(0, min(g.request.max_draft, g.num_left - 1)) for g in sequences]
        drafts = self.drafter.propose(sequences, budgets)
        if len(drafts) != len(sequences):
            raise DrafterError(f"{self.drafter.name} returned {len(drafts)} drafts for {len(sequences)} requests")
        for i, budget, tree in zip(scored, budgets, drafts, strict=True):
            self._check(tree, budget)
            batch[i].tree = tree

    def _check(self, tree: DraftTree, budget: int) -> None:
        assert self.drafter is not None
        if len(tree) > budget:
            raise DrafterError(f"{self.drafter.name} drafted {len(tree)} nodes, but its budget was {budget}")
        vocab_size = self.runner.model.config.vocab_size
        if tree.tokens and not (min(tree.tokens) >= 0 and max(tree.tokens) < vocab_size):
            raise DrafterError(f"{self.drafter.name} drafted token ids outside [0, {vocab_size}): {tree.tokens}")

    def _commit(self, g: Generation, s: ScheduledSequence, verification: Verification) -> None:
        """Make the pending tokens and the accepted path the past; append what was written; end if it ends."""
        num_pending = s.end - s.start
        path = [*range(num_pending), *(num_pending + node for node in verification.path)]
        accepted = [s.tree.tokens[node] for node in verification.path]
        s.table.commit(path, [*g.tokens[s.start : s.end], *accepted])
        if not s.scored:
            self._fork(g)
            return
        rows = [0, *(node + 1 for node in verification.path)]
        g.tokens += accepted
        g.tokens.append(verification.target_tokens[rows[-1]])
        g.sources += [s.tree.sources[node] for node in verification.path]
        g.sources.append(())
        if s.logprobs is not None:
            g.logprobs += [s.logprobs[row] for row in rows]
        reason = g.output.extend(g.tokens[len(g.tokens) - len(rows) :])
        if reason is not None:
            g.keep(len(g.output.tokens))
            self._end(g, reason)
        elif not self.keep_past:
            s.table.truncate(0)

    def _fork(self, leader: Generation) -> None:
        """Once all but the last prompt token is prefilled, let the other samples start from there."""
        assert leader.table is not None
        if leader.table.length + 1 < len(leader.tokens):
            return
        for sibling in leader.siblings:
            sibling.table = leader.table.fork()
            self.running.append(sibling)
        leader.siblings = []

    def _end(self, g: Generation, reason: FinishReason) -> None:
        g.finish = reason
        g.output.finish(reason)
        if g.table is not None:
            g.table.close()
            g.table = None
            self.running.remove(g)
        elif g in self.waiting:
            self.waiting.remove(g)
        for leader in (*self.running, *self.waiting):
            if g in leader.siblings:
                leader.siblings.remove(g)
        if g.siblings:  # it ended before they could fork its table: the next one leads
            heir, *heir.siblings = g.siblings
            g.siblings = []
            self.waiting.appendleft(heir)

    def _forget(self, g: Generation) -> None:
        if self.drafter is not None:
            self.drafter.forget(g.id)

    def _report(
        self,
        running: Sequence[Generation],
        batch: Sequence[ScheduledSequence],
        verifications: Sequence[Verification],
        times: Times,
    ) -> list[Step]:
        """Record the pass in each request's stats and trace, and let the drafter learn from it."""
        steps = []
        for g, s, verification in zip(running, batch, verifications, strict=True):
            g.stats.add_pass(times)
            if not s.scored:
                continue
            table = s.table
            blocks, holders = (tuple(table.blocks), tuple(table.holders)) if self.record_blocks else ((), ())
            step = Step(
                request=g.id,
                position=s.end,
                num_pending=s.end - s.start,
                tree=s.tree,
                picks=verification.target_tokens,
                path=verification.path,
                tokens=g.tokens[s.end :],
                times=times,
                batch=len(batch),
                blocks=blocks,
                holders=holders,
            )
            g.stats.add_step(step)
            steps.append(step)
        if self.drafter is not None and steps:
            self.drafter.observe(steps)
        for g in running:
            if g.finish is not None:
                self._forget(g)
        return steps
