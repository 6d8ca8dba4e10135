from __future__ import annotations

import json
import random

import pytest

from outpace.drafters.router.cost import ROWS, PassCost, load_cost, save_cost


def true_seconds(rows: int, context: int = 0) -> float:
    """A machine whose tiles are four rows high."""
    return 0.008 * (1 + 0.3 * ((rows - 1) // 4)) + context * 1e-6 * (1 + 0.1 * rows)


def probed(rounds: int = 2, noise: float = 0.0) -> PassCost:
    dice = random.Random(3)
    cost = PassCost()
    cost.observe([(1, 0)], true_seconds(1))
    for _ in range(rounds):
        for rows in ROWS[1:]:
            cost.observe_probe(rows, 0, [(true_seconds(1), true_seconds(rows) * dice.lognormvariate(0, noise))])
        for rows in (1, 8):
            long = true_seconds(rows, 1000) * dice.lognormvariate(0, noise)
            cost.observe_probe(rows, 1000, [(true_seconds(rows), long)])
    return cost


def test_nothing_is_known_at_first() -> None:
    assert not PassCost().is_known


def test_before_anything_is_measured_a_row_is_neither_free_nor_a_pass() -> None:
    cost = PassCost()
    cost.observe([(1, 100)], 0.01)
    assert cost.seconds([(1, 100)]) == pytest.approx(0.01)
    assert 0.011 < cost.seconds([(8, 100)]) < 0.03


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


def test_the_cost_of_rows_adds_up_to_the_pass() -> None:
    cost = probed()
    seconds = cost.seconds([(1, 700), (1, 40)])
    for rows in range(1, 12):
        seconds += cost.more(rows + 1, rows, 700)
    assert seconds == pytest.approx(cost.seconds([(12, 700), (1, 40)]), rel=1e-6)


def test_a_busy_neighbour_makes_passes_slower_and_rows_no_more_expensive() -> None:
    cost = probed()
    row, plain = cost.more(1, 1, 0) / cost.plain, cost.plain
    for _ in range(30):
        cost.observe([(1, 0)], 2 * true_seconds(1))
        cost.observe([(8, 0)], 2 * true_seconds(8))
    assert cost.plain == pytest.approx(2 * plain, rel=0.1)
    assert cost.seconds([(16, 0)]) == pytest.approx(2 * true_seconds(16), rel=0.1)
    assert cost.more(1, 1, 0) / cost.plain == pytest.approx(row, abs=0.01)


def test_a_few_wild_times_change_little() -> None:
    cost = probed()
    for step in range(200):
        cost.observe([(1, 0)], true_seconds(1) * (10 if step % 20 == 7 else 1))
    assert cost.seconds([(1, 0)]) == pytest.approx(true_seconds(1), rel=0.05)


def test_real_passes_correct_a_wrong_table_within_a_second() -> None:
    cost = probed()
    for _ in range(60):  # plain steps and drafted ones, 8 and 32 milliseconds
        cost.observe([(1, 0)], true_seconds(1))
        cost.observe([(9, 0)], 4 * true_seconds(1))
    assert cost.seconds([(9, 0)]) / cost.seconds([(1, 0)]) == pytest.approx(4.0, rel=0.15)


def test_a_probe_that_contradicts_the_table_says_so_and_makes_the_next_ones_count() -> None:
    cost = probed()
    assert not cost.observe_probe(8, 0, [(0.008, true_seconds(8))])
    assert cost.observe_probe(8, 0, [(0.008, 0.8 * true_seconds(8))])
    assert cost.rows.at(8) == pytest.approx(0.8 * 1.3, abs=0.01)
    assert sum(weight > 0.0 for weight in cost.rows.weights) == 1, "nothing else is taken for measured"
    assert cost.as_dict()["rows"] == {}


def test_a_plain_pass_much_faster_than_before_unmasks_a_table_of_a_busy_machine() -> None:
    cost = PassCost()
    cost.observe([(1, 0)], 0.016)
    cost.observe_probe(2, 0, [(0.016, 0.016 * 1.42)])
    assert cost.observe_probe(8, 0, [(0.016, 0.016 * 1.9)]) is False, "nothing was measured at 8 before"
    assert cost.observe_probe(8, 0, [(0.008, 0.008 * 1.8)]), "the ratio is much the same, but the machine is not"


def test_noisy_probes_and_passes_still_give_the_shape() -> None:
    cost, dice = probed(noise=0.3), random.Random(5)
    for _ in range(200):
        for rows in (1, 5, 9):
            cost.observe([(rows, 0)], true_seconds(rows) * dice.lognormvariate(0, 0.3))
    assert cost.seconds([(9, 0)]) / cost.seconds([(1, 0)]) == pytest.approx(1.6, rel=0.15)


def test_a_row_never_has_a_negative_cost() -> None:
    cost = PassCost()
    cost.observe([(1, 0)], 0.01)
    cost.observe_probe(8, 0, [(1.0, 0.8)])
    assert all(cost.more(rows, rows, 100) >= 0 for rows in range(1, 40))
    assert cost.seconds([(1, 0)]) <= cost.seconds([(8, 0)]) <= 0.01 + 1e-9


def test_a_first_pass_of_a_whole_batch_is_as_good_a_beginning() -> None:
    cost = PassCost()
    cost.observe([(1, 0)] * 4, true_seconds(4))
    assert cost.seconds([(1, 0)] * 4) == pytest.approx(true_seconds(4))
    for rows in (4, 8):
        cost.observe_probe(rows, 0, [(true_seconds(1), true_seconds(rows))])
    for _ in range(40):
        cost.observe([(1, 0)] * 4, true_seconds(4))
    assert cost.seconds([(1, 0)]) == pytest.approx(true_seconds(1), rel=0.1)
    assert cost.seconds([(2, 0)] * 4) == pytest.approx(true_seconds(8), rel=0.1)


def test_a_pass_of_no_time_teaches_nothing() -> None:
    cost = PassCost()
    cost.observe([(1, 0)], 0.0)
    assert not cost.is_known


def test_rows_beyond_what_was_measured_go_on_as_the_steepest_way_there() -> None:
    cost = PassCost()
    cost.observe([(1, 0)], 1.0)
    cost.observe_probe(4, 0, [(1.0, 2.0)])
    cost.observe_probe(8, 0, [(1.0, 2.0)])  # a flat stretch: free rows up to here, and nobody knows how much farther
    assert cost.rows.slope(6) == 0.0
    assert cost.rows.at(16) >= 2.0 + 8 / 7 - 1e-9
    assert cost.rows.at(64) > cost.rows.at(32)
    hasty = PassCost()
    hasty.observe([(1, 0)], 1.0)
    hasty.observe_probe(2, 0, [(1.0, 0.8)])
    assert hasty.rows.at(2) == 1.0
    assert hasty.rows.at(32) > 2.0, "no row is free where nobody has measured"


def test_what_was_measured_last_bends_its_neighbours() -> None:
    cost = PassCost()
    cost.observe([(1, 0)], 1.0)
    cost.observe_probe(8, 0, [(1.0, 2.0)])
    cost.observe_probe(4, 0, [(1.0, 3.0)])
    assert cost.rows.at(8) >= cost.rows.at(4) == pytest.approx(3.0)


def test_only_what_two_probes_agree_on_goes_to_disk() -> None:
    cost = probed(rounds=2)
    saved = cost.as_dict()["rows"]
    assert saved["4"]["ratio"] == pytest.approx(true_seconds(4) / true_seconds(1))
    assert saved["4"]["spread"] == pytest.approx(0.0)
    once = PassCost()
    once.observe([(1, 0)], 1.0)
    once.observe_probe(4, 0, [(1.0, 1.4)])
    assert once.as_dict()["rows"] == {}
    once.observe_probe(4, 0, [(1.0, 2.0)])
    assert once.as_dict()["rows"] == {}, "they do not agree"


def test_a_probe_of_this_process_outweighs_what_was_on_disk() -> None:
    cost = PassCost()
    assert cost.restore(probed().as_dict())
    assert cost.rows.at(4) == pytest.approx(1.0, abs=0.01)
    cost.observe_probe(2, 0, [(0.008, 0.008 * 1.42)])
    assert cost.rows.at(2) > 1.2


def test_what_was_learned_survives_the_process(tmp_path) -> None:
    cost = probed()
    save_cost(cost, tmp_path / "deep" / "cost.json")
    read = load_cost(tmp_path / "deep" / "cost.json")
    for parts in ([(1, 0)], [(7, 300), (2, 10)]):
        assert read.seconds(parts) == pytest.approx(cost.seconds(parts), rel=0.02)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["cost.json"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[1, 2]",
        lambda text: "null",
        lambda text: '{"schema": 2, "rows": 3}',
        lambda text: text.replace('"schema": 3', '"schema": 2'),
        lambda text: text.replace('"4": {', '"3": {'),
        lambda text: text.replace('"4": {', '"four": {'),
        lambda text: text.replace('"ratio": 1', '"ratio": -1', 1),
        lambda text: text.replace('"ratio": 1', '"ratio": "x", "was": 1', 1),
        lambda text: text.replace('"plain_seconds": 0', '"plain_seconds": -0'),
        lambda text: text.replace('"quiet_seconds": 0', '"quiet_seconds": Infinity, "was": 0'),
        lambda text: text.replace('"per_row": ', '"per_row": NaN, "was": '),
        lambda text: json.dumps(json.loads(text) | {"per_position": None}),
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
