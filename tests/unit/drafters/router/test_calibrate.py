from __future__ import annotations

import itertools

import pytest

from outpace.drafters.router.calibrate import Calibration, PassProbe
from outpace.drafters.router.cost import PassCost
from outpace.ops.reference import ReferenceOps
from tests.decoding import decode, tiny_runner
from tests.unit.drafters.router.simulator import PLAIN, Machine


def calibrated(machine: Machine, steps: int, long: int = 1024) -> tuple[PassCost, Calibration, float]:
    """Return what so many plain steps lead to, and the seconds that went into probes."""
    cost, probes = PassCost(), 0.0
    calibration = Calibration(cost, machine.probe, long, clock=machine.clock)
    for _ in range(steps):
        before = machine.now
        calibration.run_next()
        probes += machine.now - before
        seconds = machine.run([(1, 100)])
        cost.observe([(1, 100)], seconds)
        calibration.earn(seconds)
    return cost, calibration, probes


def test_nothing_is_probed_before_a_pass_was_timed() -> None:
    machine = Machine()
    assert not Calibration(PassCost(), machine.probe, 0, clock=machine.clock).run_next()
    assert machine.now == 0.0


def test_the_first_tokens_wait_for_a_few_passes_only() -> None:
    _, _, probes = calibrated(Machine(), steps=8)
    assert 0.0 < probes < 6 * PLAIN


def test_probes_take_a_small_part_of_the_time_and_end() -> None:
    machine = Machine()
    _, calibration, probes = calibrated(machine, steps=12_000)
    assert calibration.is_done
    assert probes < 6 * PLAIN + 0.004 * machine.now
    assert calibration.num_probes >= 10


def test_what_is_found_is_what_rows_and_context_cost_on_the_machine() -> None:
    machine = Machine(slope=0.05)
    cost, _, _ = calibrated(machine, steps=12_000)
    for part in ((1, 0), (4, 0), (12, 0), (8, 800)):
        assert cost.seconds([part]) == pytest.approx(machine.pass_seconds([part]), rel=0.1)


def test_where_rows_cost_passes_large_probes_wait_until_they_are_paid_for() -> None:
    machine = Machine(slope=1.0)
    cost, calibration, probes = calibrated(machine, steps=4000)
    assert cost.seconds([(8, 0)]) > 6 * PLAIN
    assert calibration.num_probes < calibrated(Machine(slope=0.05), steps=4000)[1].num_probes
    assert probes < 6 * PLAIN + 0.004 * machine.now


def test_a_table_from_disk_has_no_advance_and_is_checked() -> None:
    machine = Machine()
    known, _, _ = calibrated(machine, steps=12_000)
    cost = PassCost()
    assert cost.restore(known.as_dict())
    calibration = Calibration(cost, machine.probe, 1024, clock=machine.clock)
    assert not calibration.run_next()
    assert not calibration.is_done
    calibration.earn(1000 * PLAIN)
    assert calibration.run_next()


def busy(slope: float) -> dict[str, object]:
    """Return what a machine with such rows and passes of twice the time leaves on disk."""
    machine = Machine(slope=slope)
    machine.pass_seconds = lambda parts: 2 * Machine(slope=slope).pass_seconds(parts)  # type: ignore[method-assign]
    return calibrated(machine, steps=20_000)[0].as_dict()


def test_a_table_of_a_busy_machine_is_put_right_within_seconds() -> None:
    """As measured: 2 rows were said to cost 1.42 plain passes, and cost 1.05."""
    machine = Machine(slope=0.05)
    cost = PassCost()
    assert cost.restore(busy(0.42))
    assert cost.rows.at(2) == pytest.approx(1.42, abs=0.05)
    calibration = Calibration(cost, machine.probe, 1024, clock=machine.clock)
    while machine.now < 10.0:
        calibration.run_next()
        seconds = machine.run([(1, 100)])
        cost.observe([(1, 100)], seconds)
        calibration.earn(seconds)
    assert cost.rows.at(2) < 1.08
    assert cost.rows.at(8) == pytest.approx(1.35, abs=0.05)
    assert calibration.seconds < 0.02 * machine.now


def test_when_a_neighbour_leaves_a_check_makes_everything_unmeasured_again() -> None:
    machine = Machine(slope=0.4)
    cost, calibration, _ = calibrated(machine, steps=25_000)
    assert calibration.is_done
    machine.slope = 0.05
    begun = machine.now
    while machine.now < begun + 20.0:
        calibration.run_next()
        seconds = machine.run([(1, 100)])
        cost.observe([(1, 100)], seconds)
        calibration.earn(seconds)
    assert cost.rows.at(8) == pytest.approx(1.35, abs=0.1)
    assert cost.rows.at(4) < 1.3


def test_memory_is_given_back_when_no_probe_is_left() -> None:
    machine, rests = Machine(), list[float]()
    cost = PassCost()
    cost.observe([(1, 0)], PLAIN)
    calibration = Calibration(cost, machine.probe, 1024, lambda: rests.append(machine.now), machine.clock)
    while not calibration.is_done:
        calibration.earn(100 * PLAIN)
        calibration.run_next()
    assert len(rests) == 1
    calibration.earn(10_000 * PLAIN)
    assert calibration.run_next(), "a check"
    assert len(rests) == 2


@pytest.mark.parametrize("options", [{}, {"kv": "int8"}, {"model_type": "mistral", "sliding_window": 40}])
def test_a_real_probe_leaves_the_texts_cache_alone(options) -> None:
    runner = tiny_runner(ops=ReferenceOps(), **options)
    expected = decode(tiny_runner(ops=ReferenceOps(), **options), [[1, 2, 3]], max_new_tokens=40)[0].tokens
    probe = PassProbe(runner)
    assert probe.long == 512
    free = runner.cache.num_available
    for rows, context in ((8, 0), (1, probe.long), (8, probe.long), (32, 0), (16, probe.long)):
        assert probe(rows, context) > 0.0
    assert runner.cache.num_available == free
    assert decode(runner, [[1, 2, 3]], max_new_tokens=40)[0].tokens == expected
    probe.close()
    assert probe(4, probe.long) > 0.0, "it can be opened again"


def test_a_small_context_has_short_probes() -> None:
    assert PassProbe(tiny_runner(context=256)).long == 192
    probe = PassProbe(tiny_runner(context=32))
    assert probe.long == 0
    assert probe(8, 0) > 0.0


def test_a_probe_does_not_count_the_time_in_which_other_processes_have_the_core(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner, ticks = tiny_runner(context=32), itertools.count()
    monkeypatch.setattr(runner.ops, "clock", lambda: 5.0 * next(ticks))
    assert PassProbe(runner)(1, 0) == 5.0
    assert PassProbe(tiny_runner(context=32), clock=lambda: 7.0)(1, 0) == 0.0
