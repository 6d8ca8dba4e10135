"""The router's decisions on a synthetic machine, in simulated seconds: nothing here depends on the real clock."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from outpace.drafters import NGram, Prediction, Suffix
from outpace.drafters.protocol import Drafter, Expectation
from outpace.drafters.router import Auto, Experience
from outpace.errors import UsageError
from outpace.trace import Step, Times
from outpace.types.tree import EMPTY, DraftTree
from tests.decoding import decode, request, tiny_runner
from tests.simulated import NO_PASS, SimulatedView, verify
from tests.unit.drafters.router.simulator import PLAIN, Machine, Outcome, Slow, run

Texts = Sequence[tuple[Sequence[int], Sequence[int]]]


def noise(seed: int, length: int, vocab: int = 50_000) -> list[int]:
    dice = random.Random(seed)
    return [dice.randrange(vocab) for _ in range(length)]


def false_friends(seed: int, length: int) -> list[int]:
    """Text that seems to repeat itself and never does: every pair of tokens stood before, with another one after it."""
    dice, text = random.Random(seed), []
    while len(text) < length:
        text += [1, 2, dice.randrange(10, 100_000)]
    return text[:length]


def idioms(seed: int, length: int) -> list[int]:
    """Text as code is: four phrases of six tokens in any order, each with a new name behind it."""
    dice, text = random.Random(seed), []
    while len(text) < length:
        first = 200_000 + 10 * dice.randrange(4)
        text += [*range(first, first + 6), dice.randrange(10, 100_000)]
    return text[:length]


PASSAGE = noise(99, 160)
COPY = (PASSAGE, PASSAGE * 2)
PROSE = (noise(1, 60), noise(2, 320))
BAIT = ([1, 2, 3], false_friends(3, 320))
SMALL_VOCABULARY = (noise(4, 40, 6), noise(5, 320, 6))


def slow(machine: Machine) -> list[Drafter]:
    return [Slow(Suffix(), machine, 5e-5, 5e-6), Slow(NGram(), machine, 1e-5, 1e-7)]


def settled(machine: Machine) -> Experience:
    """Return an experience with a finished calibration."""
    experience = machine.experience()
    experience.cost.observe([(1, 0)], machine.run([(1, 0)]))
    while not experience.calibration.is_done:
        experience.calibration.run_next()
        experience.calibration.earn(PLAIN)
    return experience


def routed(machine: Machine, texts: Texts) -> Outcome:
    """Return the second run with one experience: by then the drafters are known too."""
    experience = settled(machine)
    for _ in range(2):
        outcome = run(machine, Auto(slow(machine), experience, machine.clock), texts)
    return outcome


def best_fixed(machine: Machine, texts: Texts) -> float:
    return min(
        run(machine, drafter, texts, max_draft).seconds
        for max_draft in (2, 4, 8, 16)
        for drafter in (None, *slow(machine))
    )


@pytest.mark.parametrize("slope", [0.03, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("text", [PROSE, BAIT, SMALL_VOCABULARY], ids=["prose", "bait", "small vocabulary"])
def test_where_nothing_repeats_auto_is_hardly_slower_than_plain(text: Any, slope: float) -> None:
    machine = Machine(slope=slope)
    plain = run(machine, None, [text]).seconds
    assert routed(machine, [text]).seconds <= plain / 0.98


@pytest.mark.parametrize("slope", [0.03, 0.1, 0.3])
def test_on_a_copied_passage_auto_is_close_to_the_best_fixed_strategy(slope: float) -> None:
    machine = Machine(slope=slope)
    best = best_fixed(machine, [COPY])
    assert best < 0.6 * run(machine, None, [COPY]).seconds
    assert routed(machine, [COPY]).seconds <= best / 0.93


def test_where_every_row_costs_a_pass_next_to_nothing_is_verified() -> None:
    machine = Machine(slope=1.0)
    assert sum(len(step.tree) for step in routed(machine, [BAIT]).steps) <= 16
    assert routed(machine, [COPY]).seconds <= run(machine, None, [COPY]).seconds / 0.98


@pytest.mark.parametrize("slope", [0.05, 0.2])
def test_auto_turns_with_the_text_within_32_tokens(slope: float) -> None:
    """Prose, then a passage of the prompt, then prose of another kind."""
    prompt = [*PASSAGE, *noise(11, 20)]
    output = [*false_friends(12, 100), *PASSAGE, *false_friends(13, 100)]
    machine = Machine(slope=slope)
    drafted = routed(machine, [(prompt, output)]).nodes()
    begins, ends = len(prompt) + 100, len(prompt) + 100 + len(PASSAGE)

    def verified(first: int, last: int) -> float:
        steps = [nodes for position, nodes in drafted.items() if first <= position < last]
        return sum(steps) / (last - first)

    assert verified(begins - 60, begins) < 0.3, "prose: hardly any draft"
    assert sum(begins + 32 <= position < ends - 16 for position in drafted) < (len(PASSAGE) - 48) / 3, "long drafts"
    assert verified(ends + 32, ends + 100) < 0.3, "and hardly any again"


@pytest.mark.parametrize("slope", [0.05, 0.2])
def test_auto_turns_within_32_tokens_from_prose_to_code_to_a_copied_passage(slope: float) -> None:
    prompt = [*PASSAGE, *noise(11, 20)]
    prose = [token for i in range(16) for token in (1, 2, *noise(20 + i, 6))]  # "of the": seen before, never the same
    parts = {"prose": prose, "code": idioms(13, 128), "passage": PASSAGE[:128]}
    machine = Machine(slope=slope)
    outcome = routed(machine, [(prompt, [*parts["prose"], *parts["code"], *parts["passage"]])])
    seen = {}
    for number, name in enumerate(parts):
        first = len(prompt) + 128 * number
        steps = [step for step in outcome.steps if first + 32 <= step.position < first + 112]
        tokens, nodes = sum(len(step.tokens) for step in steps), sum(len(step.tree) for step in steps)
        seen[name] = tokens / len(steps), nodes / len(steps)
    assert seen["prose"][1] < 0.6, "hardly any draft"
    assert 1.7 < seen["code"][0] < 7, "what is left of a phrase"
    assert seen["code"][1] < 6, "and no more"
    assert seen["passage"][0] > 5, "long drafts, which come true"


def test_noise_and_outliers_of_the_machine_cost_little() -> None:
    for text, limit in ((PROSE, 0.95), (COPY, 0.9)):
        quiet, busy = Machine(), Machine(noise=0.15, outliers=0.02)
        routed_steps = [len(routed(machine, [text]).steps) for machine in (quiet, busy)]
        assert routed_steps[0] >= limit * routed_steps[1]
        assert routed_steps[1] >= limit * routed_steps[0]


def test_a_batch_verifies_the_requests_whose_guesses_are_good() -> None:
    machine = Machine(slope=0.1)
    outcome = routed(machine, [COPY, PROSE, BAIT, COPY])
    verified = [sum(outcome.nodes(request).values()) for request in range(4)]
    assert min(verified[0], verified[3]) > 10 * max(verified[1], verified[2], 10)
    assert outcome.seconds <= best_fixed(machine, [COPY, PROSE, BAIT, COPY]) / 0.95


def test_in_a_large_batch_expensive_rows_are_left_to_the_texts() -> None:
    """Where a pass has many rows already, a further row costs more than it may bring."""
    machine = Machine(slope=0.0)
    machine.pass_seconds = lambda parts: PLAIN * (1 + 0.9 * max(0, sum(r for r, _ in parts) - 8))  # type: ignore[method-assign]
    alone = routed(machine, [COPY])
    together = routed(machine, [COPY] * 8)
    assert len(alone.steps) < 160
    assert sum(len(step.tree) for step in together.steps) < sum(len(step.tree) for step in alone.steps)


class Costly:
    """A drafter that is right three times in four and takes its time."""

    name = "costly"
    taps = ()

    def __init__(self, machine: Machine, text: Sequence[int], seconds: float) -> None:
        self.machine, self.text, self.seconds, self.budgets = machine, list(text), seconds, list[int]()

    def propose(self, views: Any, budgets: Any) -> list[DraftTree]:
        self.budgets += budgets
        trees = []
        for view, budget in zip(views, budgets, strict=True):
            start = len(view.tokens)
            tokens = [t if (start + i) % 4 else t + 1 for i, t in enumerate(self.text[start : start + budget])]
            self.machine.now += self.seconds * len(tokens)
            trees.append(DraftTree.chain(tokens, self.name, 0.75))
        return trees

    def observe(self, steps: Sequence[Step], passed: Any) -> None: ...

    def forget(self, request: int) -> None: ...


@pytest.mark.parametrize(("seconds", "pays"), [(0.1, True), (1.1, False)])
def test_a_drafter_that_costs_a_part_of_a_pass_for_each_node_is_asked_for_as_much_as_pays(seconds, pays) -> None:
    machine = Machine(slope=0.03)
    drafter = Costly(machine, [*PROSE[0], *PROSE[1]], seconds * PLAIN)
    experience = machine.experience()
    for _ in range(3):
        drafter.budgets.clear()
        begun = machine.now
        run(machine, Auto([drafter], experience, machine.clock), [PROSE])
        took = machine.now - begun
    plain = run(machine, None, [PROSE]).seconds
    if pays:
        assert took < 0.75 * plain
        assert sorted(drafter.budgets)[len(drafter.budgets) // 2] <= 6
    else:
        assert took < plain / 0.95
        assert len(drafter.budgets) < 12


class Halting:
    """A drafter that knows 13 of every 16 tokens by heart, and has no guess for the other three."""

    name = "halting"
    taps = ()

    def __init__(self, machine: Machine, text: Sequence[int]) -> None:
        self.machine, self.text = machine, list(text)

    def propose(self, views: Any, budgets: Any) -> list[DraftTree]:
        self.machine.now += 0.01 * PLAIN
        trees = []
        for view, budget in zip(views, budgets, strict=True):
            start = len(view.tokens)
            count = min(budget, max(0, 13 - start % 16))
            trees.append(DraftTree.chain(self.text[start : start + count], self.name, 0.9) if count else EMPTY)
        return trees

    def observe(self, steps: Sequence[Step], passed: Any) -> None: ...

    def forget(self, request: int) -> None: ...


def test_where_the_best_drafter_has_no_guess_the_next_that_pays_is_asked() -> None:
    machine = Machine(slope=0.03)
    text = [*PROSE[0], *PROSE[1]]
    asked_at: list[int] = []

    class Noted(Costly):
        def propose(self, views: Any, budgets: Any) -> list[DraftTree]:
            asked_at.extend([len(view.tokens) for view in views])
            return super().propose(views, budgets)

    experience = machine.experience()
    for _ in range(2):
        asked_at.clear()
        auto = Auto([Halting(machine, text), Noted(machine, text, 0.25 * PLAIN)], experience, machine.clock)
        outcome = run(machine, auto, [PROSE])
    silent = {step.position for step in outcome.steps if step.position % 16 >= 13}
    assert len(silent.intersection(asked_at)) > 0.8 * len(silent) > 10


class OnePass(Costly):
    """A drafter whose nodes all come at once: asking takes as long for one as for many."""

    is_one_pass = True

    def propose(self, views: Any, budgets: Any) -> list[DraftTree]:
        before = self.machine.now
        trees = super().propose(views, budgets)
        self.machine.now = before + self.seconds
        return trees


def test_a_drafter_whose_nodes_come_at_once_is_soon_asked_for_many() -> None:
    machine = Machine(slope=0.03)
    drafter = OnePass(machine, [*PROSE[0], *PROSE[1]], 0.3 * PLAIN)
    run(machine, Auto([drafter], machine.experience(), machine.clock), [PROSE])
    assert drafter.budgets[0] == 4
    assert max(drafter.budgets[1:3]) > 4


def test_what_planning_the_next_question_takes_is_part_of_what_a_question_costs() -> None:
    machine = Machine()
    experience = settled(machine)
    auto = Auto([Slow(Suffix(), machine, seconds=0.01 * PLAIN, per_node=0.0)], experience, machine.clock)
    plan = auto._plan

    def slowly(*given: Any) -> None:
        machine.now += 0.05 * PLAIN
        plan(*given)

    auto._plan = slowly  # type: ignore[method-assign]
    run(machine, auto, [COPY])
    assert experience.drafters["suffix"].question.at(4) == pytest.approx(0.06 * PLAIN, rel=0.05)


def test_what_one_request_taught_serves_the_next() -> None:
    machine = Machine()
    experience = settled(machine)
    run(machine, Auto(slow(machine), experience, machine.clock), [COPY])
    first = run(machine, Auto(slow(machine), settled(machine), machine.clock), [COPY])
    later = run(machine, Auto(slow(machine), experience, machine.clock), [COPY])
    assert len(later.steps) < len(first.steps)


def test_the_forecast_of_a_step_says_what_was_expected_and_why() -> None:
    machine = Machine()
    experience = machine.experience()
    first = run(machine, Auto(slow(machine), experience, machine.clock), [COPY]).steps[0]
    assert first.forecast is not None
    assert first.forecast.reason == "no pass was timed yet"
    steps = run(machine, Auto(slow(machine), experience, machine.clock), [COPY]).steps
    forecasts = [step.forecast for step in steps if step.forecast is not None]
    drafted = [step for step in steps if len(step.tree) and step.forecast]
    assert len(forecasts) > len(steps) - 3, "all but the last, which has no room for a draft"
    expected = sum(step.forecast.tokens for step in drafted if step.forecast)
    assert expected == pytest.approx(sum(len(step.tokens) for step in drafted), rel=0.25)
    seconds = sum(step.forecast.pass_seconds for step in drafted if step.forecast)
    assert seconds == pytest.approx(sum(step.times.forward + step.times.verify for step in drafted), rel=0.1)
    shown = drafted[0].as_dict()["forecast"]
    assert shown["reason"] == "drafting pays"
    assert set(shown["drafters"]) <= {"suffix", "ngram"}
    assert shown["seconds"]["pass"] > shown["seconds"]["plain"] > 0
    costly = Slow(NGram(), machine, seconds=0.1 * PLAIN)
    quiet = run(machine, Auto([costly], experience, machine.clock), [PROSE]).steps
    reasons = {step.as_dict()["forecast"]["reason"] for step in quiet if step.forecast}
    assert "no drafter pays" in reasons


def test_a_forecast_is_of_its_own_step_and_request() -> None:
    machine = Machine()
    auto = Auto(slow(machine), settled(machine), machine.clock)
    outcome = run(machine, auto, [COPY, PROSE])
    for step in outcome.steps:
        if step.forecast and step.forecast.reason == "drafting pays":
            assert step.tree.tokens
        elif step.forecast:
            assert not step.tree.tokens


def test_a_step_without_a_router_has_no_forecast() -> None:
    machine = Machine()
    assert run(machine, None, [PROSE]).steps[0].as_dict()["forecast"] is None


def test_greedy_and_sampled_requests_have_records_of_their_own() -> None:
    machine = Machine()
    experience = settled(machine)
    auto = Auto([NGram()], experience, machine.clock)
    for number, temperature in enumerate((0.0, 1.0)):
        asked = request((1, 2, 3) * 5, max_new_tokens=10, temperature=temperature)
        auto.propose([SimulatedView(number, asked, [1, 2, 3] * 5)], [4])
        auto.forget(number)
    assert set(experience.records) == {("ngram", True), ("ngram", False)}


def test_forgetting_leaves_nothing_of_a_request() -> None:
    machine = Machine()
    auto = Auto(slow(machine), settled(machine), machine.clock)
    sequences = [SimulatedView.start(number, PASSAGE * 2) for number in range(3)]
    auto.propose(sequences, [8, 8, 0])
    for sequence in sequences:
        auto.forget(sequence.id)
    assert not auto._states
    auto.forget(77)


def test_nobody_is_asked_before_a_pass_was_timed() -> None:
    machine = Machine()
    drafter = Slow(NGram(), machine)
    auto = Auto([drafter], machine.experience(), machine.clock)
    assert auto.propose([SimulatedView.start(1, PASSAGE * 2)], [8]) == [EMPTY]
    assert drafter.asked_at == []


def test_a_pass_with_rows_of_others_teaches_no_cost() -> None:
    """A router sees its own steps only; `batch` tells how many requests the pass had."""
    machine = Machine()
    experience = settled(machine)
    auto = Auto(slow(machine), experience, machine.clock)
    sequence = SimulatedView.start(1, PASSAGE * 2)
    before = experience.cost.seconds([(1, 100)])
    for number in range(8):
        tree = auto.propose([sequence], [8])[0]
        step = verify(sequence, tree, lambda tokens: len(tokens))
        step.times, step.batch = Times(0.0, 100.0, 0.0, 0.0), 2 + number
        auto.observe([step], NO_PASS)
    assert experience.cost.seconds([(1, 100)]) == before


def test_without_room_nobody_is_asked() -> None:
    machine = Machine()
    drafter = Slow(NGram(), machine)
    auto = Auto([drafter], machine.experience(), machine.clock)
    assert auto.propose([SimulatedView.start(1, PASSAGE * 2)], [0]) == [EMPTY]
    assert auto.propose([], []) == []
    assert drafter.asked_at == []


def test_drafters_that_could_not_be_told_apart_are_refused() -> None:
    with pytest.raises(UsageError, match="different names"):
        Auto([NGram(), NGram()], Experience())
    with pytest.raises(UsageError, match="at least one drafter"):
        Auto([], Experience())


def test_a_drafter_that_answers_for_others_is_switched_off_with_a_warning() -> None:
    drafter = NGram()
    drafter.propose = lambda views, budgets: []  # type: ignore[method-assign]
    view = SimulatedView.start(1, PASSAGE)
    assert Auto([drafter], settled(Machine())).propose([view], [8]) == [EMPTY]
    assert view.warnings == [
        "drafter 'ngram' failed and was switched off: DrafterError: returned 0 drafts for 1 requests"
    ]


class Stumbling(Costly):
    """A drafter that begins badly: no guess for its first questions, and one of them takes as long as twenty passes."""

    def propose(self, views: Any, budgets: Any) -> list[DraftTree]:
        trees = super().propose(views, budgets)
        if len(self.budgets) == 2:
            self.machine.now += 20 * PLAIN
        return [EMPTY] * len(trees) if len(self.budgets) <= 2 else trees


@pytest.mark.parametrize("is_expected", [True, False])
def test_a_drafter_with_an_expectation_is_in_full_use_within_64_tokens(is_expected: bool) -> None:
    """In a new process, whatever its first answers and timings say."""
    machine = Machine(slope=0.05)
    drafter = Stumbling(machine, [*PROSE[0], *PROSE[1]], 0.05 * PLAIN)
    if is_expected:
        drafter.expectation = Expectation(question=0.08, node=0.04, acceptance=0.6)  # type: ignore[attr-defined]
    outcome = run(machine, Auto([drafter], machine.experience(), machine.clock), [(PROSE[0], PROSE[1][:128])])
    late = [step for step in outcome.steps if step.position >= len(PROSE[0]) + 64]
    tokens_per_step = sum(len(step.tokens) for step in late) / len(late)
    assert (tokens_per_step > 2.2) == is_expected, "without, it is not asked again for hundreds of tokens"


class Moody:
    """A clock of a machine whose speed means nothing, so that the router decides anything."""

    def __init__(self, seed: int) -> None:
        self.dice, self.now = random.Random(seed), 0.0

    def __call__(self) -> float:
        self.now += self.dice.choice([1e-6, 1e-4, 1e-3, 1e-1])
        return self.now


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("sampling", "cache"),
    [
        ({}, {"kv": "f32"}),
        ({"temperature": 0.8, "top_p": 0.9, "seed": 11}, {"kv": "int8"}),
        ({"temperature": 0.7, "repetition_penalty": 1.1, "frequency_penalty": 0.1, "seed": 5}, {"kv": "bf16"}),
        ({}, {"model_type": "mistral", "sliding_window": 40}),
    ],
)
def test_the_text_is_plain_decodings_whatever_the_router_decides(sampling: Any, cache: Any, seed: int) -> None:
    prompts = [[5, 6, 7, 8] * 6, [9, 8, 7], [5, 6, 7, 8] * 3]
    options = {"max_new_tokens": 96, **sampling}
    plain = [g.tokens for g in decode(tiny_runner(**cache), prompts, **options)]
    clock = Moody(seed)
    auto = Auto([Suffix(), NGram(min_ngram=1), Prediction(plain[0][24:])], Experience(), clock)
    batch = decode(
        tiny_runner(**cache), prompts, drafter=auto, decoder={"clock": clock}, check=True, max_draft=12, **options
    )
    assert [g.tokens for g in batch] == plain
    assert sum(g.stats.steps for g in batch) < sum(len(tokens) for tokens in plain), "something was drafted"
