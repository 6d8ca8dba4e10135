from __future__ import annotations

import numpy as np
import torch

from outpace import LanguageModel
from outpace.train.target import EngineTarget, split_by_tokens
from outpace.train.text.corpus import Conversation


def test_the_states_are_those_of_a_pass_of_the_engine_whatever_is_in_the_call(
    target: EngineTarget, text: list[Conversation]
) -> None:
    sequences = [own.tokens for own in text[:5]]
    together, n = target.states(sequences, (0, 1, 2, 3)), target.config.num_layers
    alone = [target.states([tokens], (0, n)) for tokens in sequences]
    for i, tokens in enumerate(sequences):
        assert together[0][i].shape == (len(tokens), target.config.width)
        assert torch.equal(together[0][i], alone[i][0][0])
        assert torch.equal(together[n][i], alone[i][n][0])
        assert torch.equal(together[0][i], target.embedding[torch.from_numpy(tokens.astype(np.int64))])


def test_the_last_states_and_the_unembedding_give_the_text_that_the_model_writes(
    lm: LanguageModel, target: EngineTarget
) -> None:
    prompt = [5, 9, 100, 31]
    result = lm.generate(prompt, max_new_tokens=20, strategy="none", ignore_eos=True)
    tokens = np.array([*prompt, *result.tokens], np.int32)
    (final,) = target.states([tokens], (target.config.num_layers + 1,))[target.config.num_layers + 1]
    logits = final @ target.unembedding.T
    assert logits.argmax(1)[len(prompt) - 1 : -1].tolist() == list(result.tokens)


def test_it_leaves_no_trace_in_the_model_that_it_borrows(lm: LanguageModel, text: list[Conversation]) -> None:
    before = lm.runner.cache.num_available
    target = EngineTarget(lm)
    target.states([own.tokens for own in text], (1,))
    assert lm.runner.cache.num_available == before
    assert target.identity.name == lm.name
    assert target.identity.traits.vocabulary == lm.tokenizer.fingerprint
    assert target.identity.fingerprint == lm.loaded.fingerprint.hex()


def test_sequences_are_cut_into_runs_of_at_most_so_many_tokens() -> None:
    sequences = [np.zeros(n, np.int32) for n in (3, 4, 9, 1, 1, 5)]
    assert [[len(own) for own in run] for run in split_by_tokens(sequences, 7)] == [[3, 4], [9], [1, 1, 5]]
    assert list(split_by_tokens([], 7)) == []
