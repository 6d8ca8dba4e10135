from __future__ import annotations

import math

import numpy as np
import pytest

from outpace.measure.quality.perplexity import perplexity
from outpace.measure.scoring import score, softmax
from tests.decoding import tiny_runner

PROMPTS = [[5, 6, 7], [8, 9]]


def test_perplexity_is_the_inverse_geometric_mean_of_the_probs() -> None:
    runner = tiny_runner()
    sequences = [[1, 2, 3], [4]]
    probs = []
    for prompt, tokens in zip(PROMPTS, sequences, strict=True):
        for place, token in enumerate(tokens):
            (row,) = score(runner, [*prompt, *tokens[:place]], [token], width=1)
            probs.append(softmax(row)[0, token])
    assert perplexity(runner, PROMPTS, sequences) == pytest.approx(math.exp(-np.log(probs).mean()))
