from __future__ import annotations

import numpy as np
import pytest

from outpace.measure.scoring import score, softmax
from tests.decoding import decode, tiny_runner

PROMPT = list(range(1, 40))


@pytest.mark.parametrize("width", [1, 3, 64])
def test_scores_are_what_the_loop_sampled_from(width: int) -> None:
    runner = tiny_runner()
    (g,) = decode(runner, [PROMPT], max_new_tokens=20)
    rows = np.concatenate(list(score(runner, PROMPT, g.output.tokens, width)))
    assert rows.argmax(axis=1).tolist() == g.output.tokens
    runner.cache.check()
    assert runner.cache.num_available == runner.cache.capacity


def test_a_prompt_of_one_token_can_be_scored() -> None:
    (rows,) = score(tiny_runner(), [5], [6, 7])
    assert rows.shape == (2, 97)


def test_softmax_is_the_law_that_the_sampler_draws_from() -> None:
    from outpace.ops.sampling import SamplingRows
    from outpace.types import SamplingParams

    runner = tiny_runner()
    (logits,) = score(runner, PROMPT, [1, 2, 3])
    rows = SamplingRows()
    rows.add(SamplingParams(temperature=0.7, top_k=5), 0, 0, [9] * 3)
    probs = runner.ops.probs(runner.ops.array(logits), rows.build())
    np.testing.assert_allclose(softmax(logits, 0.7, 5), probs, atol=1e-6)


def test_ties_at_the_edge_of_top_k_go_to_the_lowest_ids() -> None:
    probs = softmax(np.array([[1.0, 2.0, 1.0, 1.0]], np.float32), top_k=2)
    assert np.flatnonzero(probs[0]).tolist() == [0, 1]
