"""The router: each step it decides whom to ask for how many guesses, and which to verify. Nobody is a choice.

It is an ordinary drafter that owns drafters; the loop knows nothing of it. Whatever it decides, the output stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from outpace.drafters.protocol import Drafter, SequenceView
from outpace.drafters.router.acceptance import Acceptance, OpenProposal
from outpace.drafters.router.averages import Gain, LinearCost
from outpace.drafters.router.experience import DrafterCost, DrafterRecord, Experience, sampling_kind
from outpace.drafters.router.questions import Questions
from outpace.drafters.router.selection import Proposals, select
from outpace.errors import UsageError
from outpace.runner import Pass
from outpace.trace import Forecast, Step
from outpace.types.tree import EMPTY, DraftTree

_MAX_OPEN = 2  # proposals of a drafter that wait for the sequence's judgement
_FIRST_NODES = 4  # asked for of a drafter that nobody has asked yet: enough to tell what a longer chain would bring
_INHERITED = 2.0  # questions that what earlier requests brought counts for
_EXPLORING = 0.0075  # of the time may be lost to questions that are not expected to pay
_ADVANCE = 0.5  # plain passes that may be lost to them before anything is earned
_PLAIN_STEPS = 4  # for which one prediction of the plain pass serves
_NEVER = 1 << 62  # no sequence is that long


@dataclass(slots=True)
class _Use:
    """What the router knows of one drafter in one request, and what it has decided to do with it."""

    acceptance: Acceptance
    alone: Gain
    extra: Gain  # beside the leading drafter
    num_nodes: int = _FIRST_NODES  # to ask for
    ask_at: int = 0  # length of the sequence from which it is asked
    exploring: bool = False  # it is not expected to pay
    price: float = 0.0  # plain passes that the next question is expected to take
    credit: float = 0.0  # plain passes that may be lost to exploring
    credited_at: int = 0  # length of the sequence
    read: int = 0  # tokens of the sequence that it has seen
    open: list[OpenProposal] = field(default_factory=list)


@dataclass(slots=True)
class _State:
    """One request's drafters, and the length of the sequence at which one of them is to be asked."""

    uses: list[_Use]
    kind: int  # of sampling
    greedy: bool
    ask_at: int = 0
    leader: int = -1  # the drafter that would be asked if only one were; -1: none pays
    has_open: bool = False
    asked: list[int] = field(default_factory=list)  # drafters, in this step
    proposals: Proposals | None = None  # of this step
    unit: float = 0.0  # seconds of this request's part of a plain pass
    row: float = 0.0  # what one more row costs, in that unit


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
        self._states: dict[int, _State] = {}
        self._forecasts: dict[int, Forecast] = {}  # of this step, by request
        self._costs = [
            experience.drafters.setdefault(drafter.name, DrafterCost.of(getattr(drafter, "is_one_pass", False)))
            for drafter in drafters
        ]
        self._names: dict[int, tuple[str, ...]] = {}  # of the drafters in a set (bits)
        self._num_steps = self._size = 0  # size: of the batch that `_plain` was predicted for
        self._unpaid = 0.0  # seconds of the router's own that no question has been charged with yet
        self._plain = self._row_seconds = 0.0  # of a pass without a draft (0: not known), of sampling one more row
        self._undrafted: dict[str, Forecast] = {}

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
                _judge(state, sequence.tokens)
            if not state.unit and self._plain:
                state.unit = self._plain / self._size
                self._plan(state, len(sequence.tokens) - 1, sequence.request.max_draft)
            if len(sequence.tokens) >= state.ask_at and budgets[i] > 0:
                due.append(i)
        if not self._plain or not due:
            forecast = self._without_draft("no drafter pays" if self._plain else "no pass was timed yet")
            self._forecasts.update({sequence.id: forecast for sequence in sequences})
            return [EMPTY] * len(sequences)
        seconds = [0.0] * len(self.drafters)
        self._ask(due, sequences, budgets, states, seconds)
        spent = sum(seconds)
        drafts = self._select(sequences, states, spent)
        self._learn(due, sequences, states)
        done = self._clock()
        self._learn_costs(due, states, seconds, self._unpaid + done - started - spent)
        for i in due:
            self._plan(states[i], len(sequences[i].tokens), sequences[i].request.max_draft)
            self._leave_out(states[i], sequences[i].id)
        self._unpaid = self._clock() - done
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
        return self._experience.records.setdefault((drafter.name, greedy), DrafterRecord())

    def _start(self, sequence: SequenceView) -> _State:
        greedy = sequence.request.options.sampling.greedy
        records = [self._record(drafter, greedy) for drafter in self.drafters]
        uses = [
            _Use(Acceptance(r.counts), r.alone.inherited(_INHERITED), r.extra.inherited(_INHERITED)) for r in records
        ]
        state = self._states[sequence.id] = _State(uses, sampling_kind(sequence.request), greedy)
        for use, questions in zip(uses, self._questions, strict=True):
            if questions.expected is not None and not use.alone.is_known:
                use.alone, use.extra = (Gain.expected(questions.expected.acceptance, _INHERITED) for _ in range(2))
            use.credit, use.credited_at = _ADVANCE / len(uses), len(sequence.tokens)
            questions.begin(sequence)
        return state

    def _predict_plain(self, sequences: Sequence[SequenceView], states: Sequence[_State]) -> None:
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
        states: Sequence[_State],
        seconds: list[float],
    ) -> None:
        """Ask each drafter for the requests in which it is due; set `seconds` to what each has taken."""
        for i in due:
            states[i].unit = self._plain / self._size
            states[i].proposals = Proposals(len(sequences[i].tokens), budgets[i])
            states[i].asked.clear()
        for d, questions in enumerate(self._questions):
            failed = questions.failed
            whom = [
                i for i in due if len(sequences[i].tokens) >= states[i].uses[d].ask_at and sequences[i].id not in failed
            ]
            if not whom:
                continue
            nodes = []
            for i in whom:
                use = states[i].uses[d]
                use.num_nodes = min(use.num_nodes, budgets[i])
                nodes.append(use.num_nodes)
            started = self._clock()
            trees = questions.propose([sequences[i] for i in whom], nodes)
            seconds[d] = self._clock() - started
            for i, tree in zip(whom, trees, strict=True):
                if sequences[i].id in failed:
                    continue
                states[i].asked.append(d)
                if tree.tokens:
                    state, length = states[i], len(sequences[i].tokens)
                    use = state.uses[d]
                    assert state.proposals is not None
                    state.proposals.add(tree, d, use.acceptance)
                    use.open = [*use.open[-_MAX_OPEN + 1 :], OpenProposal(tree, length)]
                    state.has_open = True

    def _select(self, sequences: Sequence[SequenceView], states: Sequence[_State], spent: float) -> list[DraftTree]:
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

    def _learn(self, due: Sequence[int], sequences: Sequence[SequenceView], states: Sequence[_State]) -> None:
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
                if len(self.drafters) > 1:
                    use.extra.learn(use.num_nodes, *brought, offset)

    def _learn_costs(
        self, due: Sequence[int], states: Sequence[_State], seconds: Sequence[float], overhead: float
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

    def _plan(self, state: _State, length: int, limit: int) -> None:
        """Decide whom to ask from the next step on, for how many nodes, and when the others are tried again."""
        unit = state.unit
        state.row = (self._experience.cost.more(self._size, 1, length) + self._row_seconds) / unit
        state.leader, num_nodes, tokens, passes = -1, 0, 1.0, 1.0
        for d, (use, cost) in enumerate(zip(state.uses, self._costs, strict=True)):
            question = cost.question
            if use.alone.is_known and question.is_known:
                best = use.alone.best(
                    1.0, 1.0 + question.fixed / unit, question.per_item / unit, limit, use.acceptance.offset(length)
                )
                if best[1] * passes > tokens * best[2] and not (use.exploring and use.credit < 0.0):
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

    def _leave_out(self, state: _State, request: int) -> None:
        """Ask nobody who has failed for the request."""
        off = [d for d, questions in enumerate(self._questions) if request in questions.failed]
        for d in off:
            state.uses[d].ask_at = _NEVER
            if d == state.leader:
                state.leader = -1
        if off:
            state.ask_at = min([use.ask_at for use in state.uses])

    def _use(self, use: _Use, num_nodes: int) -> None:
        use.num_nodes, use.ask_at, use.exploring, use.credit = num_nodes, 0, False, _ADVANCE / len(self.drafters)

    def _explore(self, use: _Use, d: int, length: int, limit: int, unit: float) -> None:
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


def _judge(state: _State, tokens: list[int]) -> None:
    """Let the sequence decide on the proposals that were waiting for it.

    A question that was not expected to pay earns back what verifying those of its guesses would have saved that the
    leading drafter did not propose as well.
    """
    length = len(tokens)
    state.has_open = False
    for use in state.uses:
        if use.open:
            for proposal in use.open:
                use.acceptance.learn(proposal.judge(tokens), length)
                if use.exploring:
                    use.credit += proposal.num_right - state.row * proposal.num_new
                    if use.credit >= use.price:  # it paid after all: go on asking
                        use.ask_at = state.ask_at = length
                proposal.num_right = proposal.num_new = 0
            use.open = [proposal for proposal in use.open if proposal.is_open]
            state.has_open = state.has_open or bool(use.open)
