"""The router: each step it decides whom to ask for how many guesses, and which to verify. Nobody is a choice.

It is an ordinary drafter that owns drafters; the loop knows nothing of it. Whatever it decides, the output stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from outpace.drafters.protocol import Drafter, SequenceView
from outpace.drafters.router.acceptance import Acceptance, OpenProposal
from outpace.drafters.router.averages import LinearCost
from outpace.drafters.router.experience import DrafterCost, DrafterRecord, Experience, sampling_kind
from outpace.drafters.router.questions import Questions
from outpace.drafters.router.selection import Proposals, select
from outpace.drafters.router.uses import MAX_OPEN, State, Use, judge
from outpace.errors import UsageError
from outpace.runner import Pass
from outpace.trace import Forecast, Step
from outpace.types.tree import EMPTY, DraftTree

_EXPECTED = 8.0  # questions that what is expected of a drafter beforehand counts for
_EXPLORING = 0.0075  # of the time may be lost to questions that are not expected to pay
_ADVANCE = 0.5  # plain passes that may be lost to them before anything is earned
_PLAIN_STEPS = 4  # for which one prediction of the plain pass serves
_STRIDE = 4  # one step in so many is learned from where the leader is steady: learning has a price too
_NEVER = 1 << 62  # no sequence is that long


class Auto:
    """Ask those of `drafters` that pay and verify those of their guesses that pay, in expected tokens per second.

    experience: what earlier requests have taught (a loaded model's is `lm.experience`).
    Proposals are judged by the sequence, verified or not. Each question brings tokens and costs time, both known as
    moving averages; a drafter that would not pay is asked as often as the time for exploring allows. One that fails is
    switched off for its request, with a warning; the others go on.
    """

    def __init__(
        self,
        drafters: Sequence[Drafter],
        experience: Experience,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        names = [drafter.name for drafter in drafters]
        if not names or len(set(names)) < len(names):
            raise UsageError(f"auto needs at least one drafter, and different names for several; got {names}")
        self.name = "auto"
        self.drafters = tuple(drafters)
        self._questions = [Questions(drafter) for drafter in drafters]
        self.taps = tuple(sorted({tap for drafter in drafters for tap in drafter.taps}))
        self._experience = experience
        self._clock = clock
        self._states: dict[int, State] = {}
        self._forecasts: dict[int, Forecast] = {}  # of this step, by request
        self._costs = [
            experience.drafters.setdefault(drafter.name, DrafterCost.of(getattr(drafter, "is_one_pass", False)))
            for drafter in drafters
        ]
        self._names: dict[int, tuple[str, ...]] = {}  # of the drafters in a set (bits)
        self._num_steps = self._size = 0  # size: of the batch that `_plain` was predicted for
        self._own, self._own_steps = 0.0, 0  # seconds of the router's own that no question was charged with yet
        self._plain = self._row_seconds = 0.0  # of a pass without a draft (0: not known), of sampling one more row
        self._undrafted: dict[str, Forecast] = {}
        self._learns = True  # from this step

    def propose(self, sequences: Sequence[SequenceView], budgets: Sequence[int]) -> list[DraftTree]:
        """Return for each sequence the guesses worth verifying."""
        self._forecasts.clear()
        if not any(budgets):
            return [EMPTY] * len(sequences)
        if self._experience.calibration is not None:
            self._experience.calibration.run_next()
        started = self._clock()
        states = [self._states.get(sequence.id) or self._start(sequence) for sequence in sequences]
        if not self._plain or len(sequences) != self._size or self._num_steps % _PLAIN_STEPS == 0:
            self._predict_plain(sequences, states)
        self._num_steps += 1
        due = []
        for i, (sequence, state) in enumerate(zip(sequences, states, strict=True)):
            state.proposals = None
            if state.has_open:
                judge(state, sequence.tokens)
            if not state.unit and self._plain:
                state.unit = self._plain / self._size
                self._plan(state, len(sequence.tokens) - 1, sequence.request.max_draft)
            if len(sequence.tokens) >= state.ask_at and budgets[i] > 0:
                due.append(i)
        if not self._plain or not due:
            forecast = self._without_draft("no drafter pays" if self._plain else "no pass was timed yet")
            self._forecasts.update({sequence.id: forecast for sequence in sequences})
            return [EMPTY] * len(sequences)
        self._learns = self._num_steps % _STRIDE == 0 or not all(
            [self._is_steady(states[i], len(sequences[i].tokens)) for i in due]
        )
        seconds = [0.0] * len(self.drafters)
        self._ask(due, sequences, budgets, states, seconds)
        spent = sum(seconds)
        drafts = self._select(sequences, states, spent)
        if self._learns:
            self._learn(due, sequences, states)
        done = self._clock()
        self._own += done - started - spent
        self._own_steps += 1
        if self._learns:
            self._learn_costs(due, states, seconds, self._own / self._own_steps)
            for i in due:
                self._plan(states[i], len(sequences[i].tokens), sequences[i].request.max_draft)
                self._leave_out(states[i], sequences[i].id)
            self._own, self._own_steps = self._clock() - done, 0
        return drafts

    def observe(self, steps: Sequence[Step], passed: Pass) -> None:
        """Learn what the pass cost and what exploring brought, and show the steps to the drafters."""
        kind = 0
        for step in steps:
            step.forecast = self._forecasts.get(step.request)
            state = self._states.get(step.request)
            if state is not None:
                kind |= state.kind
        if steps:
            self._experience.observe(steps, kind)
        for questions in self._questions:
            questions.observe(steps, passed)

    def forget(self, request: int) -> None:
        """Forget a request; what it taught stays in the experience."""
        state = self._states.pop(request, None)
        if state is not None:
            for drafter, use in zip(self.drafters, state.uses, strict=True):
                if use.read:
                    record = self._record(drafter, state.greedy)
                    record.alone, record.extra = use.alone, use.extra
            if not self._states:
                self._experience.save()
        for questions in self._questions:
            questions.forget(request)

    def _record(self, drafter: Drafter, greedy: bool) -> DrafterRecord:
        key, records = (drafter.name, greedy), self._experience.records
        if key not in records:
            records[key] = DrafterRecord.of(getattr(drafter, "is_calibrated", False))
        return records[key]

    def _start(self, sequence: SequenceView) -> State:
        greedy = sequence.request.options.sampling.greedy
        records = [self._record(drafter, greedy) for drafter in self.drafters]
        uses = [Use(Acceptance(r.counts, r.variance), r.alone.inherited(), r.extra.inherited()) for r in records]
        state = self._states[sequence.id] = State(uses, sampling_kind(sequence.request), greedy)
        for use, questions in zip(uses, self._questions, strict=True):
            if questions.expected is not None and not use.alone.is_known:
                use.alone, use.extra = (
                    gain.expecting(questions.expected.acceptance, _EXPECTED) for gain in (use.alone, use.extra)
                )
            use.credit, use.credited_at = _ADVANCE / len(uses), len(sequence.tokens)
            questions.begin(sequence)
        return state

    def _is_steady(self, state: State, length: int) -> bool:
        """Whether a question now hardly tells more: the leader's confidences are calibrated, and nobody is tried."""
        if state.leader < 0 or not getattr(self.drafters[state.leader], "is_calibrated", False):
            return False
        leader = state.uses[state.leader]
        if not (leader.read and leader.alone.is_settled):  # the first question also reads the prompt
            return False
        return not any([use.exploring and use.ask_at <= length for use in state.uses])

    def _predict_plain(self, sequences: Sequence[SequenceView], states: Sequence[State]) -> None:
        """Predict the pass without a draft, for a few steps."""
        self._size = len(sequences)
        kind = 0
        for state in states:
            kind |= state.kind
        cost, sampling = self._experience.cost, self._experience.sampling_cost(kind)
        self._plain = 0.0
        if cost.is_known:
            self._plain = cost.seconds([(1, len(s.tokens)) for s in sequences]) + sampling.at(self._size)
            self._row_seconds = sampling.per_item
            for questions, known in zip(self._questions, self._costs, strict=True):
                if (prior := questions.expected) is not None and not known.is_timed:  # follows the first, slow passes
                    known.question = LinearCost.expected(prior.question * cost.plain, prior.node * cost.plain)
        self._undrafted.clear()

    def _without_draft(self, reason: str) -> Forecast:
        """Return the forecast of a step without a draft: the same until the plain pass is predicted anew."""
        forecast = self._undrafted.get(reason)
        if forecast is None:
            forecast = self._undrafted[reason] = Forecast(1.0, 0.0, self._plain, self._plain, reason)
        return forecast

    def _ask(
        self,
        due: Sequence[int],
        sequences: Sequence[SequenceView],
        budgets: Sequence[int],
        states: Sequence[State],
        seconds: list[float],
    ) -> None:
        """Ask each drafter for the requests in which it is due; set `seconds` to what each has taken."""
        for i in due:
            states[i].unit = self._plain / self._size
            states[i].proposals = Proposals(len(sequences[i].tokens), budgets[i])
            states[i].asked.clear()
            states[i].stand_in = -1
        for d in range(len(self.drafters)):
            whom = [i for i in due if len(sequences[i].tokens) >= states[i].uses[d].ask_at]
            self._ask_one(d, whom, sequences, budgets, states, seconds)
        silent = [i for i in due if states[i].asked and not states[i].proposals.tokens]  # type: ignore[union-attr]
        for d, whom in self._next_to_ask(silent, sequences, budgets, states).items():
            self._ask_one(d, whom, sequences, budgets, states, seconds)

    def _ask_one(
        self,
        d: int,
        whom: Sequence[int],
        sequences: Sequence[SequenceView],
        budgets: Sequence[int],
        states: Sequence[State],
        seconds: list[float],
    ) -> None:
        """Ask one drafter for some of the requests, but for those in which it has failed."""
        questions, nodes = self._questions[d], []
        whom = [i for i in whom if sequences[i].id not in questions.failed]
        if not whom:
            return
        for i in whom:
            use = states[i].uses[d]
            use.num_nodes = min(use.num_nodes, budgets[i])
            nodes.append(use.num_nodes)
        started = self._clock()
        trees = questions.propose([sequences[i] for i in whom], nodes)
        seconds[d] += self._clock() - started
        for i, tree in zip(whom, trees, strict=True):
            if sequences[i].id in questions.failed:
                continue
            states[i].asked.append(d)
            if tree.tokens:
                state, length = states[i], len(sequences[i].tokens)
                use = state.uses[d]
                assert state.proposals is not None
                state.proposals.add(tree, d, use.acceptance)
                if self._learns:
                    use.open = [*use.open[-MAX_OPEN + 1 :], OpenProposal(tree, length)]
                    state.has_open = True

    def _next_to_ask(
        self, silent: Sequence[int], sequences: Sequence[SequenceView], budgets: Sequence[int], states: Sequence[State]
    ) -> dict[int, list[int]]:
        """Return by drafter the requests, of those in which whoever was asked has no guess, where it pays by itself.

        What it brings beside a better one may be too little, on average over the places where that one has guesses.
        """
        next_to_ask: dict[int, list[int]] = {}
        for i in silent:
            state, length = states[i], len(sequences[i].tokens)
            best_rate, chosen = 1.0, -1
            for d, use in enumerate(state.uses):
                if d not in state.asked and (best := self._alone(state, d, length, budgets[i])) is not None:
                    num_nodes, tokens, passes = best
                    if tokens > best_rate * passes:
                        best_rate, chosen, use.num_nodes = tokens / passes, d, num_nodes
            if chosen >= 0:
                state.stand_in = chosen
                next_to_ask.setdefault(chosen, []).append(i)
        return next_to_ask

    def _select(self, sequences: Sequence[SequenceView], states: Sequence[State], spent: float) -> list[DraftTree]:
        """Return the drafts that pay best, together, and note their forecasts."""
        batch = [state.proposals or Proposals(len(s.tokens), 0) for s, state in zip(sequences, states, strict=True)]
        if not any([proposals.tokens for proposals in batch]):
            forecast = Forecast(1.0, spent, self._plain, self._plain, "no guess")
            self._forecasts.update({sequence.id: forecast for sequence in sequences})
            return [EMPTY] * len(batch)
        seconds = select(batch, self._experience.cost, self._row_seconds, self._plain, spent)
        drafts = []
        for sequence, proposals in zip(sequences, batch, strict=True):
            kept = proposals.kept
            if kept:
                reason = "drafting pays"
            elif proposals.tokens:
                reason = "the guesses are too unlikely for what their rows cost"
            else:
                reason = "no guess"
            who = [
                (self.drafters[d].name, len(places), proposals.expected_of(d)) for d, places in proposals.places.items()
            ]
            self._forecasts[sequence.id] = Forecast(proposals.expected, spent, seconds, self._plain, reason, tuple(who))
            for bits in {proposals.sources[node] for node in kept}.difference(self._names):
                self._names[bits] = tuple([drafter.name for d, drafter in enumerate(self.drafters) if bits >> d & 1])
            drafts.append(proposals.tree(self._names) if kept else EMPTY)
        return drafts

    def _learn(self, due: Sequence[int], sequences: Sequence[SequenceView], states: Sequence[State]) -> None:
        """Update what asking brought, for each drafter alone and beside the leading one."""
        for i in due:
            state, length = states[i], len(sequences[i].tokens)
            proposals, leader = state.proposals, state.leader
            assert proposals is not None
            beside = 1 << leader if leader in state.asked else 0
            for d in state.asked:
                use = state.uses[d]
                brought = proposals.brought_by(d, state.unit)
                offset = use.acceptance.offset(length)
                use.alone.learn(use.num_nodes, *brought, offset)
                if d != leader and beside:
                    brought = proposals.brought_by(d, state.unit, beside)
                    if use.exploring and d in proposals.places:
                        use.open[-1].common = proposals.common(d, beside)
                if len(self.drafters) > 1 and d != state.stand_in:  # its place says nothing of the others
                    use.extra.learn(use.num_nodes, *brought, offset)

    def _learn_costs(
        self, due: Sequence[int], states: Sequence[State], seconds: Sequence[float], overhead: float
    ) -> None:
        """Learn what questions cost. The router's own time belongs to whoever made it necessary by being asked."""
        overhead /= max(sum([len(states[i].asked) for i in due]), 1)
        for d, cost in enumerate(self._costs):
            whom = [states[i] for i in due if d in states[i].asked]
            if not whom:
                continue
            each = seconds[d] / len(whom) + overhead
            nodes = sum([len(state.proposals.places.get(d, ())) for state in whom if state.proposals]) / len(whom)
            new = [state for state in whom if not state.uses[d].read]
            length = sum([state.proposals.context for state in whom if state.proposals]) / len(whom)
            if not new:
                cost.question.learn(nodes, each)
                cost.is_timed = True
            elif cost.question.is_known:  # it had to read the prompts
                cost.reading.learn(length, max(each - cost.question.at(nodes), 0.0))
            for state in whom:
                use = state.uses[d]
                assert state.proposals is not None
                use.read = state.proposals.context
                if use.exploring:
                    use.credit -= each / state.unit

    def _plan(self, state: State, length: int, limit: int) -> None:
        """Decide whom to ask from the next step on, for how many nodes, and when the others are tried again."""
        unit = state.unit
        state.row = (self._experience.cost.more(self._size, 1, length) + self._row_seconds) / unit
        state.leader, num_nodes, tokens, passes = -1, 0, 1.0, 1.0
        for d, use in enumerate(state.uses):
            if use.exploring and use.credit < 0.0:
                continue
            if (best := self._alone(state, d, length, limit)) is not None and best[1] * passes > tokens * best[2]:
                state.leader, (num_nodes, tokens, passes) = d, best
        for d, use in enumerate(state.uses):
            question = self._costs[d].question
            if d == state.leader:
                self._use(use, num_nodes)
                continue
            if not question.is_known:
                use.ask_at, use.exploring = 0, False
                continue
            if state.leader >= 0 and use.extra.is_known:
                best = use.extra.best(
                    tokens,
                    passes + question.fixed / unit,
                    question.per_item / unit,
                    limit,
                    use.acceptance.offset(length),
                )
                if best[1] * passes > tokens * best[2] and not (use.exploring and use.credit < 0.0):
                    self._use(use, best[0])
                    continue
            self._explore(use, d, length, limit, unit)
        state.ask_at = min([use.ask_at for use in state.uses])

    def _alone(self, state: State, d: int, length: int, limit: int) -> tuple[int, float, float] | None:
        """Return for how many nodes a drafter is best asked alone, with the step's tokens and plain passes.

        None where that is not known.
        """
        use, question = state.uses[d], self._costs[d].question
        if not (use.alone.is_known and question.is_known):
            return None
        fixed, per_item = question.fixed / state.unit, question.per_item / state.unit
        return use.alone.best(1.0, 1.0 + fixed, per_item, limit, use.acceptance.offset(length))

    def _leave_out(self, state: State, request: int) -> None:
        """Ask nobody who has failed for the request."""
        off = [d for d, questions in enumerate(self._questions) if request in questions.failed]
        for d in off:
            state.uses[d].ask_at = _NEVER
            if d == state.leader:
                state.leader = -1
        if off:
            state.ask_at = min([use.ask_at for use in state.uses])

    def _use(self, use: Use, num_nodes: int) -> None:
        use.num_nodes, use.ask_at, use.exploring, use.credit = num_nodes, 0, False, _ADVANCE / len(self.drafters)

    def _explore(self, use: Use, d: int, length: int, limit: int, unit: float) -> None:
        """Plan the next question to a drafter that is not expected to pay, when what it costs has been earned."""
        question, share = self._costs[d].question, _EXPLORING / len(self.drafters)
        # As many nodes as double the cost of one: where asking is what costs, more of them tell more.
        afford = 1 + int(question.fixed / question.per_item) if question.per_item else limit
        use.num_nodes = max(1, min(afford, limit))
        seconds = question.at(use.alone.expected_nodes(use.num_nodes))
        if not use.read:
            seconds += self._costs[d].reading.at(length)
        use.price = seconds / unit
        use.credit += share * (length - use.credited_at)
        use.credit = min(use.credit, max(use.price, _ADVANCE / len(self.drafters)))
        use.credited_at = length
        use.exploring = True
        use.ask_at = length + 1 + int(max(use.price - use.credit, 0.0) / share)
