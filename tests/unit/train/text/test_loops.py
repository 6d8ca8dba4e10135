from __future__ import annotations

import numpy as np
import pytest

from outpace.train.text.loops import cut_loop


def noise(length: int, seed: int = 0) -> list[int]:
    return [int(x) for x in np.random.default_rng(seed).integers(0, 1000, length)]


@pytest.mark.parametrize("period", [1, 2, 7, 40, 64])
def test_a_loop_is_cut_after_its_first_repetitions(period: int) -> None:
    head, body = noise(30), noise(period, 1)
    text = head + body * (200 // period + 2)
    assert cut_loop(text) == 30 + period + 40


def test_a_loop_in_the_middle_ends_the_text_there() -> None:
    assert cut_loop([*noise(20), *[7] * 60, *noise(50, 2)]) == 20 + 1 + 40


@pytest.mark.parametrize(
    "text",
    [[], [1], [1, 1, 1], noise(500), [5] * 41, noise(10) * 2, (noise(65) * 4)[:200]],
    ids=["nothing", "one", "short", "noise", "just not", "said twice", "longer than any period"],
)
def test_what_is_no_loop_stays_whole(text: list[int]) -> None:
    assert cut_loop(text) == len(text)


def test_two_loops_end_at_the_first() -> None:
    assert cut_loop([*noise(10), *[1] * 80, *noise(10, 3), *[2, 3] * 80]) == 10 + 1 + 40
