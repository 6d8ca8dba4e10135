from __future__ import annotations

import json
import random

import pytest

from outpace.drafters.router.cost import ROWS, Curve, PassCost, load_cost, save_cost


def true_seconds(rows: int, context: int = 0) -> float:
    """A machine whose tiles are four rows high."""
    return 0.008 * (1 + 0.3 * ((rows - 1) // 4)) + context * 1e-6 * (1 + 0.1 * rows)


def probed(rounds: int = 2, noise: float = 0.0) -> PassCost:
    dice = random.Random(3)
    cost = PassCost()
    cost.observe([(1, 0)], true_seconds(1))
    for _ in range(rounds):
        for rows in ROWS[1:]:
            cost.observe_probe(rows, 0, true_seconds(rows) / true_seconds(1) * dice.lognormvariate(0, noise))
        for rows in (1, 8, 16):
            ratio = true_seconds(rows, 1000) / true_seconds(rows) * dice.lognormvariate(0, noise)
            cost.observe_probe(rows, 1000, ratio)
    return cost


def test_nothing_is_known_at_first() -> None:
    assert not PassCost().is_known


def test_after_one_plain_pass_every_row_is_taken_to_cost_as_much() -> None:
    cost = PassCost()
    cost.observe([(1, 100)], 0.01)
    assert cost.seconds([(1, 100)]) == pytest.approx(0.01)
    assert cost.seconds([(8, 100)]) == pytest.approx(0.08)
    assert cost.more(1, 1, 100) == pytest.approx(0.01)


def test_probes_are_remembered_at_and_between_the_knots() -> None:
    cost = probed()
    for rows in ROWS:
        assert cost.seconds([(rows, 0)]) == pytest.approx(true_seconds(rows), rel=0.01)
    assert true_seconds(5) < cost.seconds([(7, 0)]) + 1e-9 <= true_seconds(8) + 2e-9
    assert cost.seconds([(64, 0)]) == pytest.approx(true_seconds(64), rel=0.2)


def test_the_context_costs_by_row_and_request() -> None:
    cost = probed()
    for rows in (1, 4, 8, 16):
        assert cost.seconds([(rows, 1000)]) == pytest.approx(true_seconds(rows, 1000), rel=0.03)
    both = cost.seconds([(1, 500), (1, 1500)])
    assert both == pytest.approx(true_seconds(2) + 2000 * 1.1e-6, rel=0.02)


def test_the_price_of_rows_adds_up_to_the_pass() -> None:
    cost = probed()
    seconds = cost.seconds([(1, 700), (1, 40)])
    for rows in range(1, 12):
        seconds += cost.more(rows + 1, rows, 700)
    assert seconds == pytest.approx(cost.seconds([(12, 700), (1, 40)]), rel=1e-6)


def test_a_busy_neighbour_changes_the_pace_and_not_the_price_of_rows() -> None:
    cost = probed()
    price, pace = cost.more(1, 1, 0) / cost.pace, cost.pace
    for _ in range(30):
        cost.observe([(1, 0)], 2 * true_seconds(1))
        cost.observe([(8, 0)], 2 * true_seconds(8))
    assert cost.pace == pytest.approx(2 * pace, rel=0.1)
    assert cost.seconds([(16, 0)]) == pytest.approx(2 * true_seconds(16), rel=0.1)
    assert cost.more(1, 1, 0) / cost.pace == pytest.approx(price, rel=0.1)


def test_a_few_wild_times_change_little() -> None:
    cost = probed()
    for step in range(200):
        cost.observe([(1, 0)], true_seconds(1) * (10 if step % 20 == 7 else 1))
    assert cost.seconds([(1, 0)]) == pytest.approx(true_seconds(1), rel=0.05)


def test_real_passes_correct_a_wrong_table() -> None:
    cost = probed()
    for _ in range(300):
        cost.observe([(1, 0)], true_seconds(1))
        cost.observe([(9, 0)], 4 * true_seconds(1))
    assert cost.seconds([(9, 0)]) / cost.seconds([(1, 0)]) == pytest.approx(4.0, rel=0.15)


def test_noisy_probes_and_passes_still_give_the_shape() -> None:
    cost, dice = probed(noise=0.3), random.Random(5)
    for _ in range(200):
        for rows in (1, 5, 9):
            cost.observe([(rows, 0)], true_seconds(rows) * dice.lognormvariate(0, 0.3))
    assert cost.seconds([(9, 0)]) / cost.seconds([(1, 0)]) == pytest.approx(1.6, rel=0.12)


def test_a_row_never_has_a_negative_price() -> None:
    cost = PassCost()
    cost.observe([(1, 0)], 0.01)
    cost.observe_probe(8, 0, 0.8)
    assert all(cost.more(rows, rows, 100) >= 0 for rows in range(1, 40))
    assert cost.seconds([(1, 0)]) <= cost.seconds([(8, 0)]) <= 0.01


def test_a_first_pass_of_a_whole_batch_is_as_good_a_beginning() -> None:
    cost = PassCost()
    cost.observe([(1, 0)] * 4, true_seconds(4))
    assert cost.seconds([(1, 0)] * 4) == pytest.approx(true_seconds(4))
    for rows in (4, 8):
        cost.observe_probe(rows, 0, true_seconds(rows) / true_seconds(1))
    for _ in range(40):
        cost.observe([(1, 0)] * 4, true_seconds(4))
    assert cost.seconds([(1, 0)]) == pytest.approx(true_seconds(1), rel=0.1)
    assert cost.seconds([(2, 0)] * 4) == pytest.approx(true_seconds(8), rel=0.1)


def test_a_pass_of_no_time_teaches_nothing() -> None:
    cost = PassCost()
    cost.observe([(1, 0)], 0.0)
    assert not cost.is_known


def test_rows_beyond_what_was_measured_are_never_free() -> None:
    curve = Curve((1, 4, 8, 16), first=1.0)
    curve.learn(4, 2.0)
    curve.learn(8, 2.0)  # a flat stretch: free rows up to here, and nobody knows how much farther
    assert curve.slope(6) == 0.0
    assert curve.at(16) >= 2.0 + 8 / 7 - 1e-9
    assert curve.at(32) >= 2.0 + 24 / 7 - 1e-9
    hasty = Curve((1, 2, 4, 8), first=1.0)
    hasty.learn(2, 0.8)  # a second row that seemed to cost nothing says little of an eighth
    assert hasty.at(2) == 1.0
    assert hasty.at(8) >= 2.0


def test_a_curve_known_at_one_place_is_a_proportion() -> None:
    curve = Curve((1, 4, 16))
    curve.learn(6, 0.6)
    assert curve.at(1) == pytest.approx(0.1)
    assert curve.at(20) == pytest.approx(2.0)


def test_what_was_learned_survives_the_process(tmp_path) -> None:
    cost = probed()
    save_cost(cost, tmp_path / "deep" / "cost.json")
    read = load_cost(tmp_path / "deep" / "cost.json")
    for parts in ([(1, 0)], [(7, 300), (2, 10)]):
        assert read.seconds(parts) == pytest.approx(cost.seconds(parts))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["cost.json"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[1, 2]",
        lambda text: "null",
        lambda text: '{"schema": 1, "base": 3}',
        lambda text: text.replace('"schema": 1', '"schema": 99'),
        lambda text: text.replace("[1, 2, 4,", "[1, 2, 3,"),
        lambda text: json.dumps(
            json.loads(text) | {"reach": {"rows": [1, 8, 16], "plain_passes": [1], "samples": [1]}}
        ),
        lambda text: text.replace('"plain_passes": [', '"plain_passes": [-1, ', 1),
        lambda text: text.replace('"pace_seconds": 0', '"pace_seconds": -0'),
        lambda text: text.replace('"plain_passes": [1.0', '"plain_passes": [NaN', 1),
        lambda text: text.replace('"plain_passes": [1.0', '"plain_passes": ["x"', 1),
    ],
)
def test_a_damaged_file_is_ignored(tmp_path, damage) -> None:
    path = tmp_path / "cost.json"
    save_cost(probed(), path)
    whole = path.read_text()
    assert load_cost(path).is_known
    path.write_text(damage(whole))
    assert path.read_text() != whole
    assert not load_cost(path).is_known


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path) -> None:
    (tmp_path / "file").write_text("not a folder")
    save_cost(probed(), tmp_path / "file" / "cost.json")
    assert not load_cost(tmp_path / "file" / "cost.json").is_known
    assert not load_cost(None).is_known
