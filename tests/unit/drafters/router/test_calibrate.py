from __future__ import annotations

import pytest

from outpace.ops.reference import ReferenceOps
from outpace.drafters.router.calibrate import Calibration, PassProbe
from outpace.drafters.router.cost import PassCost
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


def test_the_first_tokens_wait_for_less_than_a_tenth_of_a_second() -> None:
    _, _, probes = calibrated(Machine(), steps=8)
    assert 0.0 < probes < 0.1


def test_probes_take_a_small_part_of_the_time_and_end() -> None:
    machine = Machine()
    _, calibration, probes = calibrated(machine, steps=9000)
    assert calibration.is_done
    assert probes < 0.1 + 0.01 * machine.now
    assert calibration.num_probes >= 10


def test_what_is_found_is_the_machines_price_of_rows_and_context() -> None:
    machine = Machine(slope=0.05)
    cost, _, _ = calibrated(machine, steps=9000)
    for part in ((1, 0), (4, 0), (12, 0), (8, 800)):
        assert cost.seconds([part]) == pytest.approx(machine.pass_seconds([part]), rel=0.1)


def test_where_rows_are_as_dear_as_passes_large_probes_are_left_out() -> None:
    machine = Machine(slope=1.0)
    cost, calibration, probes = calibrated(machine, steps=12000)
    assert calibration.is_done
    assert cost.seconds([(8, 0)]) > 6 * PLAIN
    cheap = calibrated(Machine(slope=0.05), steps=12000)[1]
    assert calibration.num_probes < cheap.num_probes
    assert probes < 0.05 * machine.now


@pytest.mark.parametrize(("plain", "limit"), [(0.02, 2.0), (0.5, 6.5)])
def test_a_calibration_ends_after_two_seconds_or_a_dozen_passes(plain: float, limit: float) -> None:
    machine = Machine()
    machine.pass_seconds = lambda parts: plain * (0.7 + 0.3 * sum(rows for rows, _ in parts))  # type: ignore[method-assign]
    cost, calibration, probes = calibrated(machine, steps=9000)
    assert calibration.is_done
    assert 0.0 < probes < limit + 0.002 * machine.now
    assert cost.seconds([(8, 100)]) < 4 * plain, "what matters most was found out"


def test_a_table_from_disk_needs_no_probes() -> None:
    machine = Machine()
    known, _, _ = calibrated(machine, steps=9000)
    cost = PassCost()
    assert cost.restore(known.as_dict())
    calibration = Calibration(cost, machine.probe, 1024, clock=machine.clock)
    assert calibration.is_done
    assert not calibration.run_next()


def test_a_calibration_that_was_cut_short_goes_on_where_it_was() -> None:
    machine = Machine()
    begun, first, _ = calibrated(machine, steps=200)
    assert not first.is_done
    cost = PassCost()
    assert cost.restore(begun.as_dict())
    calibration = Calibration(cost, machine.probe, 1024, clock=machine.clock)
    while not calibration.is_done:
        calibration.run_next()
        calibration.earn(PLAIN)
    assert calibration.num_probes + first.num_probes == 11, "nothing is measured twice"


def test_a_wrong_table_from_disk_is_put_right_in_time() -> None:
    machine = Machine(slope=0.05)
    cost = PassCost()
    assert cost.restore(calibrated(Machine(slope=0.9), steps=9000)[0].as_dict())
    rests: list[float] = []
    calibration = Calibration(cost, machine.probe, 1024, lambda: rests.append(machine.now), machine.clock)
    for _ in range(30_000):
        calibration.run_next()
        seconds = machine.run([(1, 100)])
        cost.observe([(1, 100)], seconds)
        calibration.earn(seconds)
    price = cost.more(1, 1, 0) / cost.seconds([(1, 0)])
    assert price < 0.3, "nine tenths was in the table"
    assert calibration.seconds < 0.01 * machine.now
    assert len(rests) >= calibration.num_probes, "memory is given back after each"


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
