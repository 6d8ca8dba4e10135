from __future__ import annotations

import numpy as np
import pytest
import torch

from outpace import LanguageModel
from outpace.drafters.jacobi import _piece
from outpace.train.adapt import objectives as module
from outpace.train.adapt.loss import Teacher
from outpace.train.adapt.objectives import first_guesses, loss_of, masked_inputs, next_guesses, noise
from outpace.train.text.corpus import Conversation
from tests.adapting import blocks_of, conversation, learner_of, settings_of, shaken
from tests.training import written_by

SOME = [conversation(3, 30, 96), conversation(6, 41), conversation(2, 24, 96)]


def test_masks_are_as_frequent_as_their_probabilities_and_those_are_spread_evenly() -> None:
    """2000 blocks: the mean of uniform [0.2, 0.8] to 4 standard errors of Bernoulli draws, 8000 of them."""
    blocks = blocks_of([conversation(1, 4001, seed=s) for s in range(2)])
    is_masked, t = noise(blocks, 0.2, 0.8, np.random.default_rng(0))
    by_block = blocks.by_block(t)[..., 0].flatten().sort().values
    assert torch.equal(blocks.by_block(t).amin(2), blocks.by_block(t).amax(2))
    assert torch.allclose(by_block, torch.linspace(0.2, 0.8, len(by_block)), atol=1e-3)
    assert abs(float(is_masked.float().mean()) - 0.5) < 4 * 0.5 / 8000**0.5
    low, high = is_masked[t < 0.35].float().mean(), is_masked[t > 0.65].float().mean()
    assert low < 0.32
    assert high > 0.68


def test_padding_is_never_masked() -> None:
    blocks = blocks_of([conversation(3, 9), conversation(3, 33)])
    is_masked, _ = noise(blocks, 0.99, 1.0, np.random.default_rng(0))
    assert not (is_masked & ~blocks.is_row).any()


def test_a_masked_target_is_a_masked_row_one_further_but_the_last_has_none() -> None:
    blocks = blocks_of([conversation(1, 9)])
    is_masked = torch.tensor([[True, False, True, True, False, True, False, True]])
    assert masked_inputs(blocks, is_masked).tolist() == [[False, True, False, True, False, False, True, False]]
    unshifted = blocks_of([conversation(1, 9)], shift=0)
    assert torch.equal(masked_inputs(unshifted, is_masked), is_masked)


@pytest.mark.parametrize("shift", [0, 1])
def test_a_masked_token_is_seen_by_no_row_of_its_block_and_a_known_one_is(lm: LanguageModel, shift: int) -> None:
    learner = shaken(learner_of(lm, settings_of(shift=shift)))
    own = conversation(5, 9)
    other = Conversation(own.tokens.copy(), 5, False, "tiny")
    other.tokens[6] = (own.tokens[6] + 1) % 90
    states = {}
    for is_hidden in (True, False):
        for number, text in enumerate((own, other)):
            blocks = blocks_of([text], shift=shift)
            is_masked = (blocks.positions + shift == 6) & is_hidden
            embedded = learner.embedded(blocks.inputs, masked_inputs(blocks, is_masked))
            clean = learner.original(blocks.tokens)
            states[is_hidden, number] = learner.rows(blocks, embedded, clean, is_causal=False)
    assert torch.equal(states[True, 0], states[True, 1])
    assert ((states[False, 0] - states[False, 1]).abs().amax(dim=2) > 1e-4).all()


@pytest.mark.parametrize("kind", ["diffusion", "jacobi"])
@pytest.mark.parametrize("weights", ["lora", "full"])
@pytest.mark.parametrize("loss", ["mean", "elbo"])
def test_slopes_are_those_of_finite_differences(
    lm: LanguageModel, kind: str, weights: str, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Along a random direction of all that learns; jacobi's fixed point is a constant of its loss, so it is held."""
    settings = settings_of(kind, weights=weights, loss=loss, soft=0.4, min_noise=0.2)
    learner = shaken(learner_of(lm, settings, 96 if weights == "full" else None), spread=0.02)
    blocks = blocks_of(SOME)
    if kind == "jacobi":
        held: list[Teacher] = []

        def hold(states: torch.Tensor, matrix: torch.Tensor) -> Teacher:
            if states.requires_grad or matrix.requires_grad:
                raise AssertionError("the fixed point is to be a constant")
            held.append(Teacher(states.clone(), matrix.clone()))
            return held[(len(held) - 1) % 2]

        monkeypatch.setattr(module, "Teacher", hold)

    def loss_now() -> torch.Tensor:
        losses = loss_of(learner, blocks, settings, np.random.default_rng(3))
        assert losses is not None
        return losses.total

    loss_now().backward()
    generator = torch.Generator().manual_seed(4)
    own = [x for x in learner.parameters.values() if x.grad is not None]
    direction = [torch.randn(x.shape, generator=generator) for x in own]
    slope = sum(float((x.grad * way).sum()) for x, way in zip(own, direction, strict=True) if x.grad is not None)

    def moved(by: float) -> float:
        with torch.no_grad():
            for x, way in zip(own, direction, strict=True):
                x.add_(way, alpha=by)
        return float(loss_now().detach())

    step = 5e-4
    assert slope == pytest.approx((moved(step) - moved(-2 * step)) / (2 * step), rel=0.03)


def test_first_guesses_are_those_of_the_drafter() -> None:
    blocks = blocks_of([conversation(3, 30, 96), conversation(1, 41)])
    found = first_guesses(blocks)
    for s, row in np.argwhere(blocks.is_row.numpy()):
        anchor = int(blocks.starts[s]) + row // blocks.size * blocks.size
        position = int(blocks.positions[s, row])
        text = blocks.tokens[s, : anchor + 1].tolist()
        assert int(found[s, row]) == (text[anchor] if position == anchor else _piece(text, position))


def test_a_pass_gives_every_row_but_the_anchors_its_next_guess() -> None:
    blocks = blocks_of([conversation(1, 9)])
    anchors = blocks.inputs[0, [0, 4]].tolist()
    found = next_guesses(blocks, torch.tensor([[11, 12, 13, 14, 21, 22, 23, 24]]))
    assert found.tolist() == [[anchors[0], 11, 12, 13, anchors[1], 21, 22, 23]]


def test_untrained_jacobi_behind_the_right_guesses_is_right(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fixed point: where every guess is the text, the network agrees with itself, and with the original's text."""
    text = written_by(lm, 4, length=33)
    settings = settings_of("jacobi", clean=0.0)
    blocks = blocks_of(text)
    monkeypatch.setattr(module, "first_guesses", lambda own: own.inputs)
    losses = loss_of(learner_of(lm, settings), blocks, settings, np.random.default_rng(0))
    assert losses is not None
    assert float(losses.parts["accuracy"]) == 1.0


def test_a_batch_without_a_masked_slot_teaches_nothing(lm: LanguageModel) -> None:
    settings = settings_of(max_noise=1e-9)
    assert loss_of(learner_of(lm, settings), blocks_of(SOME), settings, np.random.default_rng(0)) is None
