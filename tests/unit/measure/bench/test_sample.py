from __future__ import annotations

import pytest

from outpace.api import LanguageModel
from outpace.measure.bench.sample import PLAIN, Sample, call, numbers
from tests.unit.measure.bench.samples import GREEDY


def test_a_call_goes_past_the_end_token_and_keeps_its_steps(lm: LanguageModel) -> None:
    prompts = [[5, 6, 7], [8, 9]]
    results, seconds = call(lm, prompts, "ngram", "sampled", max_new_tokens=24, salt=b"x")
    assert [len(result.tokens) for result in results] == [24, 24]
    assert all(result.trace is not None and result.trace.steps for result in results)
    assert seconds > 0


def test_a_calls_numbers_leave_the_first_step_of_each_sequence_out(lm: LanguageModel) -> None:
    results, seconds = call(lm, [[5, 6, 7], [8, 9]], PLAIN, "greedy", max_new_tokens=10, salt=b"y")
    found = numbers(results, seconds, weight_bytes=1000, kv_bytes=10)
    assert (found["prompt_tokens"], found["tokens"], found["decode_tokens"], found["steps"]) == (5, 20, 18, 18)
    assert (found["verified"], found["accepted"]) == (0, 0)
    # Nine passes read the weights; rows read the keys and values of positions 4 ... 12 and 3 ... 11.
    assert found["num_bytes"] == 9 * 1000 + 10 * (sum(range(4, 13)) + sum(range(3, 12)))
    sample = Sample(GREEDY, PLAIN, "x", 0, 0, (0, 1), bandwidth=1.0, **found)
    assert sample.rate == pytest.approx(18 / sum(found["phases"].values()))
