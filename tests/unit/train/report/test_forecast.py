from __future__ import annotations

import numpy as np
import pytest

from outpace.api import LanguageModel
from outpace.train.report.forecast import Decoded, compare, decode
from outpace.train.text.corpus import Conversation
from outpace.train.text.responses import Beginning, Job, Responder


def test_forecast_and_reality_are_compared_over_all_steps_of_a_kind() -> None:
    decoded = [
        Decoded("a", False, 30, 10, True),
        Decoded("a", False, 10, 10, True),
        Decoded("b", False, 20, 5, True),
        Decoded("a", True, 30, 20, True),
    ]
    check = compare({("a", False): 2.1, ("b", False): 4.0, ("a", True): 1.5}, decoded)
    assert [(row.kind, row.sampled, row.texts, row.tokens, row.real) for row in check.rows] == [
        ("a", False, 2, 40, 2.0),
        ("a", True, 1, 30, 1.5),
        ("b", False, 1, 20, 4.0),
    ]
    greedy, sampled = check.totals
    assert (greedy.kind, greedy.texts, greedy.tokens) == ("all", 3, 60)
    assert greedy.real == pytest.approx(60 / 25)
    assert greedy.forecast == pytest.approx(60 / (40 / 2.1 + 5))
    assert (sampled.sampled, sampled.ratio) == (True, 1.0)
    assert check.agrees


@pytest.mark.parametrize(("forecast", "agrees"), [(2.09, True), (2.11, False), (1.91, True), (1.89, False)])
def test_five_per_cent_is_the_limit(forecast: float, agrees: bool) -> None:
    assert compare({("a", False): forecast}, [Decoded("a", False, 20, 10, True)]).agrees == agrees


def test_a_text_that_is_written_differently_spoils_the_comparison() -> None:
    check = compare({("a", False): 2.0}, [Decoded("a", False, 20, 10, True), Decoded("a", False, 20, 10, False)])
    assert check.different == 1
    assert not check.agrees


def test_the_engine_writes_held_out_conversations_again_and_counts_its_steps(lm: LanguageModel) -> None:
    responder = Responder(lm, 20, 100)
    jobs = [Job(i, Beginning((5, 6, 7 + i), "x"), 0, 0.9 * (i % 2), seed=i) for i in range(4)]
    held_out = [own for job in jobs for own in responder.answer(job)]
    assert len(held_out) == 4
    found = list(decode(lm, held_out, "ngram", 3))
    assert all(own.is_same for own in found)
    assert [own.tokens for own in found] == [len(own.tokens) - own.num_prompt for own in held_out]
    assert all(1 <= own.steps <= own.tokens for own in found)
    other = Conversation(np.array([5, 6, 7, *[3] * 20], np.int32), 3, False, "x")
    assert [own.is_same for own in decode(lm, [other], "ngram", 3)] == [False]
