from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import outpace
from outpace import LanguageModel
from outpace.drafters.jacobi import _piece
from outpace.train.adapt.export import export_adapter
from outpace.train.adapt.measure import THRESHOLDS, iterate, measure, unmask
from outpace.train.adapt.objectives import masked_inputs, next_guesses
from outpace.train.target import identity_of
from tests.adapting import blocks_of, conversation, learner_of, settings_of, shaken
from tests.training import written_by

SOME = [conversation(3, 26, 96), conversation(6, 31), conversation(2, 9, 96)]


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("threshold", [1.0, 0.05, 0.0])
def test_blocks_are_unmasked_as_a_loop_over_one_block_does_it(lm: LanguageModel, shift: int, threshold: float) -> None:
    """The oracle decodes each block by itself, slot by slot, from a fresh pass over it."""
    learner = shaken(learner_of(lm, settings_of(shift=shift)))
    blocks = blocks_of(SOME, shift=shift)
    clean = learner.original(blocks.tokens)
    found, passes = unmask(learner, blocks, clean, threshold)
    seen = set()
    for s in range(len(SOME)):
        for number, first in enumerate(range(0, blocks.is_row.shape[1], blocks.size)):
            rows = slice(first, first + blocks.size)
            if not blocks.is_row[s, first]:
                assert passes[s, number] == 0
                continue
            known: dict[int, int] = {}
            steps = 0
            while len(known) < blocks.size:
                steps += 1
                tokens = blocks.targets.clone()
                is_masked = torch.zeros_like(blocks.is_row)
                for i in range(blocks.size):
                    tokens[s, first + i] = known.get(i, 0)
                    is_masked[s, first + i] = i not in known
                inputs = next_guesses(blocks, tokens) if shift else tokens
                embedded = learner.embedded(inputs, masked_inputs(blocks, is_masked))
                states = learner.rows(blocks, embedded, clean, is_causal=False)[s, rows]
                probs = torch.softmax(states.detach() @ learner.network.unembedding.T, dim=1).max(dim=1)
                order = sorted((i for i in range(blocks.size) if i not in known), key=lambda i: -float(probs.values[i]))
                for rank, i in enumerate(order):
                    if rank == 0 or float(probs.values[i]) >= threshold:
                        known[i] = int(probs.indices[i])
            assert found[s, rows].tolist() == [known[i] for i in range(blocks.size)]
            assert int(passes[s, number]) == steps
            seen.add(steps)
    assert seen == ({1} if threshold == 0 else {blocks.size}) or threshold == 0.05


def test_blocks_are_iterated_as_a_loop_over_one_block_does_it(lm: LanguageModel) -> None:
    """The oracle: plain passes over text and guesses; what stands behind right guesses only is accepted."""
    learner = shaken(learner_of(lm, settings_of("jacobi")), spread=0.02)
    blocks = blocks_of(SOME)
    found, passes, (right, total) = iterate(learner, blocks, learner.clean(blocks.tokens))
    assert total == int(blocks.is_row.sum())
    first_right = 0
    for s, number in np.argwhere(blocks.by_block(blocks.is_row).all(2).numpy()):
        rows = slice(number * blocks.size, (number + 1) * blocks.size)
        text = blocks.tokens[s, : int(blocks.starts[s]) + rows.start + 1].tolist()
        guesses = [_piece(text, len(text) + i) for i in range(blocks.size - 1)]
        steps, is_over, firsts = 0, False, None
        while not is_over:
            states = learner.clean(torch.tensor([[*text, *guesses]])).states[0, len(text) - 1 :].detach()
            said = (states @ learner.network.unembedding.T).argmax(dim=1).tolist()
            steps, is_over, firsts = steps + 1, said[:-1] == guesses, firsts or said
            guesses = said[:-1]
        assert found[s, rows].tolist() == said
        assert int(passes[s, number]) == steps
        first_right += sum(x == y for x, y in zip(firsts or [], said, strict=True))
    assert right == first_right


def test_a_fixed_point_is_the_networks_own_greedy_text(lm: LanguageModel) -> None:
    learner = shaken(learner_of(lm, settings_of("jacobi")), spread=0.02)
    blocks = blocks_of([conversation(3, 8)])
    found, _, _ = iterate(learner, blocks, learner.clean(blocks.tokens))
    text = blocks.tokens[0, :3].tolist()
    for _ in range(blocks.size):
        states = learner.clean(torch.tensor([text])).states[0, -1]
        text.append(int((states @ learner.network.unembedding.T).argmax()))
    assert found[0].tolist() == text[3:]


def test_an_original_that_is_not_changed_agrees_with_itself(lm: LanguageModel) -> None:
    settings = settings_of("jacobi")
    found = measure(learner_of(lm, settings), written_by(lm, 8, seed=5), [], settings)
    assert found is not None
    assert found.clean_agreement == 1.0
    assert found.clean_perplexity == found.original_perplexity
    (row,) = found.rows
    assert row.verified is None
    assert row.agreement > 0.95  # the fixed point is greedy text; that of the engine was written with 8-bit products
    assert found.score == row.tokens_per_pass


def test_rows_count_what_they_say(lm: LanguageModel) -> None:
    """By hand, from the decoded blocks themselves."""
    settings = settings_of()
    learner = shaken(learner_of(lm, settings), spread=0.02)
    text = written_by(lm, 6, seed=5)
    found = measure(learner, text, [], settings)
    assert found is not None
    assert found.clean_agreement is None
    for row, threshold in zip(found.rows, THRESHOLDS, strict=True):
        tokens = passes = right = leading = count = 0
        for own in text:
            blocks = blocks_of([own], ends=[])
            got, steps = unmask(learner, blocks, learner.original(blocks.tokens), threshold)
            for block, truth in zip(blocks.by_block(got)[0], blocks.by_block(blocks.targets)[0], strict=True):
                hits = [a == b for a, b in zip(block.tolist(), truth.tolist(), strict=True)]
                tokens, right, count = tokens + len(hits), right + sum(hits), count + 1
                leading += [*hits, False].index(False)
            passes += int(steps.sum())
        assert row.threshold == threshold
        assert row.tokens_per_pass == pytest.approx(tokens / passes)
        assert row.verified == pytest.approx((leading + count) / (passes + count))
        assert row.agreement == pytest.approx(right / tokens)
    assert found.score == max(row.verified or 0 for row in found.rows)
    assert found.num_tokens == tokens


def test_greedy_text_is_preferred_and_no_more_is_measured_than_was_asked_for(lm: LanguageModel) -> None:
    settings = settings_of(measured_rows=50)
    learner = learner_of(lm, settings)
    greedy, sampled = written_by(lm, 4, seed=1), written_by(lm, 4, seed=2, temperature=1.0)
    found = measure(learner, [*sampled, *greedy], [], settings)
    assert found == measure(learner, greedy, [], settings)
    assert found is not None
    assert found.num_tokens == 80
    assert measure(learner, sampled, [], replace(settings, measured_rows=1000)) is not None
    assert measure(learner, [conversation(3, 5)], [], settings) is None


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("threshold", [0.0, 0.99, 1.0])
def test_blocks_are_unmasked_as_the_engine_does_it(
    lm: LanguageModel, tmp_path: Path, shift: int, threshold: float
) -> None:
    """What is measured here is what decoding with the adapter's file does: the same tokens, the same passes."""
    settings = settings_of(shift=shift, format="F32")
    learner = shaken(learner_of(lm, settings))
    export_adapter(learner, settings, identity_of(lm), tmp_path / "adapter.gguf")
    own = outpace.load(lm.path, adapter=tmp_path / "adapter.gguf", ops="reference", kv="f32", threads=1)
    for number in range(4):
        prompt = conversation(3 + number, 12 + number, seed=number)
        blocks = blocks_of([prompt], shift=shift)
        found, passes = unmask(learner, blocks, learner.original(blocks.tokens), threshold)
        result = own.generate(
            prompt.tokens[: prompt.num_prompt].tolist(),
            strategy="block_diffusion",
            threshold=threshold,
            block=4,
            max_new_tokens=4,
            ignore_eos=True,
            temperature=0.0,
        )
        assert result.tokens == blocks.by_block(found)[0, 0].tolist()
        assert result.stats.passes == int(passes[0, 0])
