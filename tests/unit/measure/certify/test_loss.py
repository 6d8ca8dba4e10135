from __future__ import annotations

from outpace.measure.certify.loss import measure_loss
from tests.decoding import decode, tiny_runner

PROMPTS = [[5, 6, 7], [8, 9]]


def test_a_mode_that_is_the_target_loses_nothing() -> None:
    runner = tiny_runner()
    sequences = [g.output.tokens for g in decode(runner, PROMPTS, temperature=1.0, seed=3, max_new_tokens=8)]
    loss = measure_loss("a", "b", runner, runner, PROMPTS, sequences, sequences)
    assert (loss.positions, loss.tv_mean, loss.tv_max, loss.top1) == (16, 0.0, 0.0, 1.0)
    assert loss.perplexity == loss.own_perplexity > 1
