"""The router: each step it decides whom to ask for guesses, and which guesses to verify. Nobody is a choice.

It is an ordinary drafter that owns drafters; the loop knows nothing of it. Whatever it decides, the text stays.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from outpace.drafters.protocol import Drafter
from outpace.drafters.protocol import SequenceView as View
from outpace.errors import DrafterError, UsageError
from outpace.runner import Pass
from outpace.trace import Step
from outpace.tree import EMPTY, DraftTree, Forecast
from outpace.tune.acceptance import Acceptance, Habits, OpenGuess
from outpace.tune.choose import Guesses, choose
from outpace.tune.experience import DrafterCost, Experience, demand_of

_MOST_OPEN = 2  # proposals of a drafter that wait for the text's judgement
_LONGEST_PAUSE = 16  # tokens between two questions to a drafter that does not pay
_EXPLORING = 0.01  # of the time may go into such questions
_GAIN = 0.06  # of the moving average of what asking saved
_PLAIN_STEPS = 4  # for which one prediction of the plain pass serves
_LEAST_ROOM = 4  # nodes asked for while none is worth verifying; beyond that, twice as many as were worth it last
_COSTLY = 0.2  # part of a plain pass: a drafter that takes longer for a whole budget gets a budget that pays


@dataclass(slots=True)
class _Standing:
    """How a drafter does in one request. Seconds saved by asking: `alone`, and `extra` beside the leading drafter."""

    acceptance: Acceptance
    alone: float
    extra: float
    num_asked: int = 0
    room: int = _LEAST_ROOM  # most nodes to ask for
    ask_at: int = 0  # length of the text from which it is asked again
    pause: int = 0
    open: list[OpenGuess] = field(default_factory=list)


@dataclass(slots=True)
class _Text:
    """One request's standings, one per drafter, and the length of the text at which somebody is to be asked."""

    standings: list[_Standing]
    demand: int
    greedy: bool
    ask_at: int = 0
    has_open: bool = False  # a proposal waits for the text
    asked: list[int] = field(default_factory=list)  # drafters, in this step


@dataclass(slots=True)
class _Answers:
    """What the drafters said to one request. proposed: number of nodes by drafter that had an answer."""

    guesses: Guesses
    proposed: dict[int, int] = field(default_factory=dict)

    def take(self, d: int, tree: DraftTree, text: _Text) -> None:
        """Merge in the proposal of a drafter, and let it wait for the text's judgement."""
        standing, length = text.standings[d], self.guesses.context
        self.proposed[d] = len(tree)
        self.guesses.add(tree, d, standing.acceptance, length)
        standing.open = [*standing.open[-_MOST_OPEN + 1 :], OpenGuess(tree, length)]
        text.has_open = True


class Auto:
    """Ask those of `drafters` that pay and verify those of their guesses that pay, in expected tokens per second.

    experience: what earlier requests have taught (a loaded model's is `lm.experience`).
    Proposals are judged by the text, verified or not, so a drafter that does not pay is only asked now and then.
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
        self.taps = tuple(sorted({tap for drafter in drafters for tap in drafter.taps}))
        self._experience = experience
        self._clock = clock
        self._texts: dict[int, _Text] = {}
        self._costs = [experience.drafters.setdefault(name, DrafterCost()) for name in names]
        self._credits: dict[int, tuple[str, ...]] = {}  # names of the drafters in a set (bits)
        self._num_steps = self._size = 0  # size: of the batch that `_plain` was predicted for
        self._plain = self._row_seconds = 0.0  # of a pass without a draft (0: not known), of choosing one more row
        self._undrafted: dict[str, DraftTree] = {}

    def propose(self, views: Sequence[View], budgets: Sequence[int]) -> list[DraftTree]:
        """Return for each view the guesses worth verifying, with the forecast that made them so."""
        if not any(budgets):
            return [EMPTY] * len(views)
        if self._experience.calibration is not None:
            self._experience.calibration.run_next()
        started = self._clock()
        texts, due = [], []
        for i, view in enumerate(views):
            text = self._texts.get(view.id) or self._start(view)
            texts.append(text)
            if text.has_open:
                _judge(text, view.tokens)
            if len(view.tokens) >= text.ask_at and budgets[i] > 0:
                due.append(i)
        if len(views) != self._size or self._num_steps % _PLAIN_STEPS == 0:
            self._predict_plain(views, texts)
        self._num_steps += 1
        if not due:
            return [self._nothing("no drafter pays")] * len(views)
        answers, spent = self._ask(due, views, budgets, texts)
        if answers:
            drafts = self._choose(views, answers, spent)
        else:
            drafts = [self._nothing("no guess" if self._plain else "no pass was timed yet")] * len(views)
        for i in due:
            self._credit(texts[i], answers.get(i), len(views[i].tokens))
        self._share_out(due, texts, self._clock() - started - spent)
        return drafts

    def observe(self, steps: Sequence[Step], passed: Pass) -> None:
        """Learn what the pass cost, and show it to the drafters."""
        if steps and self._experience.wants_pass():
            texts = [text for step in steps if (text := self._texts.get(step.request)) is not None]
            self._experience.observe(steps, _demand(texts))
        for drafter in self.drafters:
            drafter.observe(steps, passed)

    def forget(self, request: int) -> None:
        """Forget a request; what it taught stays in the experience."""
        text = self._texts.pop(request, None)
        if text is not None:
            for drafter, standing in zip(self.drafters, text.standings, strict=True):
                if standing.num_asked:
                    self._experience.gains[drafter.name, text.greedy] = standing.alone
            if not self._texts:
                self._experience.save()
        for drafter in self.drafters:
            drafter.forget(request)

    # -- asking ------------------------------------------------------------------------------------

    def _start(self, view: View) -> _Text:
        greedy = view.request.options.sampling.greedy
        standings = []
        for drafter, cost in zip(self.drafters, self._costs, strict=True):
            habits = self._experience.habits.setdefault((drafter.name, greedy), Habits())
            gain = self._experience.gains.get((drafter.name, greedy))
            standing = _Standing(Acceptance(habits), gain or 0.0, gain or 0.0)
            if (
                gain is not None and gain <= cost.seconds
            ):  # it did not pay lately: let it wait before it reads this prompt
                _schedule(standing, False, len(view.tokens), cost.seconds, self._experience.cost.pace)
            standings.append(standing)
        text = self._texts[view.id] = _Text(standings, demand_of(view.request), greedy)
        return text

    def _predict_plain(self, views: Sequence[View], texts: Sequence[_Text]) -> None:
        """Predict the pass without a draft, for a few steps."""
        self._size = len(views)
        cost, choosing = self._experience.cost, self._experience.choosing_curve(_demand(texts))
        self._plain = self._row_seconds = 0.0
        if cost.is_known:
            self._plain = cost.seconds([(1, len(view.tokens)) for view in views]) + choosing.at(self._size)
            self._row_seconds = choosing.slope(self._size)
        self._undrafted.clear()

    def _nothing(self, reason: str) -> DraftTree:
        """Return no draft, with its forecast: the same object until the plain pass is predicted anew."""
        draft = self._undrafted.get(reason)
        if draft is None:
            draft = self._undrafted[reason] = DraftTree(forecast=Forecast(1.0, 0.0, self._plain, self._plain, reason))
        return draft

    def _ask(
        self, due: Sequence[int], views: Sequence[View], budgets: Sequence[int], texts: Sequence[_Text]
    ) -> tuple[dict[int, _Answers], float]:
        """Ask each drafter for the requests in which it is due; return what came, and the seconds that took."""
        answers: dict[int, _Answers] = {}
        spent = 0.0
        for d, drafter in enumerate(self.drafters):
            whom = [i for i in due if len(views[i].tokens) >= texts[i].standings[d].ask_at]
            if not whom:
                continue
            asked = [texts[i].standings[d] for i in whom]
            rooms = [self._room(d, standing, views[i], budgets[i]) for i, standing in zip(whom, asked, strict=True)]
            started = self._clock()
            trees = drafter.propose([views[i] for i in whom], rooms)
            seconds = self._clock() - started
            spent += seconds
            if len(trees) != len(whom):
                raise DrafterError(f"drafter {drafter.name!r} returned {len(trees)} drafts for {len(whom)} requests")
            if all([standing.num_asked for standing in asked]):  # the first time it reads the whole prompt
                self._costs[d].learn(seconds / len(whom), sum([len(tree) for tree in trees]) / len(whom))
            for i, tree in zip(whom, trees, strict=True):
                texts[i].standings[d].num_asked += 1
                texts[i].asked.append(d)
                if tree.tokens:
                    if i not in answers:
                        answers[i] = _Answers(Guesses(len(views[i].tokens), budgets[i]))
                    answers[i].take(d, tree, texts[i])
        return answers, spent

    def _room(self, d: int, standing: _Standing, view: View, budget: int) -> int:
        """Return how many nodes to ask for: as many as may be kept, or fewer where a slow drafter pays better so."""
        budget = min(budget, standing.room)
        node_seconds = self._costs[d].node_seconds
        if node_seconds * budget <= _COSTLY * self._plain:
            return budget
        cost, length = self._experience.cost, len(view.tokens)
        seconds, tokens, reach = self._plain, 1.0, 1.0
        best, best_rate = 1, 0.0
        for depth in range(budget):
            reach *= standing.acceptance.typical(depth, length)
            tokens += reach
            seconds += cost.more(1 + depth, 1 + depth, length) + self._row_seconds + node_seconds
            if tokens > best_rate * seconds:
                best, best_rate = depth + 1, tokens / seconds
        return best

    # -- choosing ----------------------------------------------------------------------------------

    def _choose(self, views: Sequence[View], answers: dict[int, _Answers], spent: float) -> list[DraftTree]:
        """Return the drafts that pay best, together, with their forecasts."""
        seconds = plain = self._plain
        batch = [answers[i].guesses if i in answers else Guesses(len(view.tokens), 0) for i, view in enumerate(views)]
        if plain:
            seconds = choose(batch, self._experience.cost, self._row_seconds, plain, spent)
        return [self._draft(g, answers.get(i), spent, seconds) for i, g in enumerate(batch)]

    def _draft(self, guesses: Guesses, answers: _Answers | None, spent: float, seconds: float) -> DraftTree:
        if guesses.kept:
            reason = "drafting pays"
        elif not self._plain:
            reason = "no pass was timed yet"
        elif answers is not None:
            reason = "the guesses are too unlikely for what their rows cost"
        else:
            reason = "no guess"
        expected: list[tuple[str, int, float]] = []
        for d, count in answers.proposed.items() if answers is not None else ():
            reached = sum([guesses.reach[node] for node in guesses.kept if guesses.by[node] >> d & 1])
            expected.append((self.drafters[d].name, count, reached))
        forecast = Forecast(guesses.expected, spent, seconds, self._plain, reason, tuple(expected))
        for bits in {guesses.by[node] for node in guesses.kept}.difference(self._credits):
            self._credits[bits] = tuple([drafter.name for d, drafter in enumerate(self.drafters) if bits >> d & 1])
        return guesses.tree(self._credits, forecast) if guesses.kept else DraftTree(forecast=forecast)

    # -- what asking was worth -----------------------------------------------------------------------

    def _credit(self, text: _Text, answers: _Answers | None, length: int) -> None:
        """Update what each asked drafter saves, and decide when to ask it next."""
        worth = answers.guesses.worth_by() if answers is not None else {}
        room = _LEAST_ROOM + 2 * len(answers.guesses.kept) if answers is not None else _LEAST_ROOM
        standings, costs = text.standings, self._costs
        leader, most = 0, -math.inf
        for d, standing in enumerate(standings):
            if (saved := standing.alone - costs[d].seconds) > most:
                leader, most = d, saved
        for d in text.asked:
            standing, cost = standings[d], costs[d].seconds
            standing.room = room
            alone = extra = 0.0
            for bits, saved in worth.items():
                if bits >> d & 1:
                    alone += saved
                    if d == leader or not bits >> leader & 1:
                        extra += saved
            standing.alone += _GAIN * (alone - standing.alone)
            standing.extra += _GAIN * (extra - standing.extra)
            saves = max(standing.alone, alone) if d == leader else max(standing.extra, extra)
            _schedule(standing, saves > cost, length, cost, self._plain / self._size)
        text.ask_at = min([standing.ask_at for standing in standings])

    def _share_out(self, due: Sequence[int], texts: Sequence[_Text], seconds: float) -> None:
        """Add the router's own time to what asking costs: whoever is asked made it necessary."""
        num_asked = sum([len(texts[i].asked) for i in due])
        for i in due:
            for d in texts[i].asked:
                self._costs[d].learn_overhead(seconds / num_asked)
            texts[i].asked.clear()


def _demand(texts: Sequence[_Text]) -> int:
    """Return what choosing the tokens of a pass takes, whichever request asks for it."""
    demand = 0
    for text in texts:
        demand |= text.demand
    return demand


def _judge(text: _Text, tokens: list[int]) -> None:
    """Let the text decide on the proposals that were waiting for it."""
    length = len(tokens)
    text.has_open = False
    for standing in text.standings:
        if standing.open:
            for guess in standing.open:
                standing.acceptance.learn(guess.judge(tokens), length)
            standing.open = [guess for guess in standing.open if guess.is_open]
            text.has_open = text.has_open or bool(standing.open)


def _schedule(standing: _Standing, pays: bool, length: int, cost: float, plain: float) -> None:
    """Ask a drafter that pays at every step, and another one after pauses that double, as its cost allows."""
    if pays:
        standing.pause = 0
        standing.ask_at = 0
        return
    standing.pause = min(max(2 * standing.pause, 1), _LONGEST_PAUSE)
    standing.ask_at = length + 1 + max(standing.pause, int(cost / (_EXPLORING * plain)) if plain else 0)
