from __future__ import annotations

import pytest

from outpace.drafters.router.experience import Experience, sampling_kind
from outpace.trace import Step, Times
from outpace.types.tree import EMPTY, DraftTree
from tests.decoding import request, tiny_runner
from tests.unit.drafters.router.simulator import PLAIN


def step(nodes: int = 0, seconds: float = PLAIN, batch: int = 1, num_pending: int = 1) -> Step:
    tree = DraftTree.chain(list(range(nodes)), "x") if nodes else EMPTY
    return Step(0, 100, num_pending, tree, [0] * (nodes + 1), [], [0], Times(0.0, seconds, 0.001, 0.0), batch)


def test_passes_of_decoding_rows_teach_what_passes_cost() -> None:
    experience = Experience()
    experience.observe([step()], kind=0)
    assert experience.cost.plain == pytest.approx(PLAIN)
    assert experience.sampling_cost(0).at(1) == pytest.approx(0.001)
    for _ in range(80):
        experience.observe([step()], kind=0)
        experience.observe([step(nodes=7, seconds=2 * PLAIN)], kind=0)
    assert experience.cost.rows.at(8) == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("other", [{"batch": 2}, {"num_pending": 5}])
def test_a_pass_that_did_something_else_too_teaches_nothing(other) -> None:
    experience = Experience()
    experience.observe([step(**other)], kind=0)
    assert not experience.cost.is_known


def test_only_one_plain_pass_in_four_is_learned_from_and_every_drafted_one() -> None:
    experience = Experience()
    experience.observe([step()], kind=0)
    before = experience.cost.plain
    experience.observe([step(seconds=2 * PLAIN)], kind=0)
    assert experience.cost.plain == before
    experience.observe([step(nodes=3, seconds=2 * PLAIN)], kind=0)
    assert experience.cost.plain > before


def test_sampling_costs_are_kept_by_what_requests_ask_for() -> None:
    kinds = [
        sampling_kind(request((1,), **options))
        for options in ({}, {"temperature": 1.0}, {"repetition_penalty": 1.2}, {"logprobs": 0})
    ]
    assert len(set(kinds)) == 4


def test_what_passes_cost_lies_in_a_file_for_each_model_and_machine(tmp_path) -> None:
    runner = tiny_runner()
    experience = Experience.of(runner, b"one model", "1.0", tmp_path)
    experience.save()
    assert list(tmp_path.iterdir()) == [], "nothing was measured yet"
    experience.cost.observe([(1, 0)], PLAIN)
    for _ in range(2):
        experience.cost.observe_probe(4, 0, [(PLAIN, 1.3 * PLAIN)])
    experience.save()
    again = Experience.of(runner, b"one model", "1.0", tmp_path)
    assert again.cost.rows.at(4) == pytest.approx(1.3)
    assert not Experience.of(runner, b"another model", "1.0", tmp_path).cost.is_known
    assert not Experience.of(runner, b"one model", "1.1", tmp_path).cost.is_known
    assert not Experience.of(runner, b"one model", "1.0", None).cost.is_known


def test_a_file_is_written_again_only_for_another_ratio(tmp_path) -> None:
    experience = Experience.of(tiny_runner(), b"x", "1.0", tmp_path)
    experience.cost.observe([(1, 0)], PLAIN)
    for ratio, writes in ((1.30, True), (1.35, False), (1.60, True)):
        for file in tmp_path.iterdir():
            file.unlink()
        experience.cost.probes.clear()
        for _ in range(2):
            experience.cost.observe_probe(4, 0, [(PLAIN, ratio * PLAIN)])
        experience.save()
        assert bool(list(tmp_path.iterdir())) is writes
