"""What a step of adaptation learns: masked slots (diffusion), or the fixed point from any state before it (jacobi)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from outpace.train.adapt.blocks import Blocks
from outpace.train.adapt.learner import Learner
from outpace.train.adapt.loss import Teacher, best_tokens, label_loss
from outpace.train.adapt.passes import Clean
from outpace.train.adapt.settings import AdaptSettings
from outpace.train.objective import StepLosses

_ITERATIONS = 4  # of a Jacobi trajectory whose states are learned from: 0 ... 3 passes behind the first guess
_KNUTH = 2654435769  # spreads positions, as the drafter `jacobi` does


def loss_of(learner: Learner, blocks: Blocks, settings: AdaptSettings, rng: np.random.Generator) -> StepLosses | None:
    """Return the loss of a batch, None if nothing in it can be learned. rng: what is masked, or how far guesses are.

    Its parts: accuracy, how often the text's token was the first choice; clean, the autoregressive loss, where there is
    one.
    """
    objective = _diffusion if settings.kind == "diffusion" else _jacobi
    return objective(learner, blocks, settings, rng)


# Diffusion.


def noise(blocks: Blocks, min_noise: float, max_noise: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return which targets are masked, [S, R], and with which probability each was, [S, R].

    One probability t a block, uniform in [min_noise, max_noise], and spread evenly over the batch (as in VDM,
    arXiv:2107.00630, appendix I.1), so that the loss varies less.
    """
    shape = tuple(blocks.is_row.shape)
    count = shape[0] * (shape[1] // blocks.size)
    even = (rng.permutation(count) + rng.random()) / count
    t = min_noise + (max_noise - min_noise) * even.reshape(shape[0], -1).repeat(blocks.size, 1)
    is_masked = rng.random(shape) < t
    device = blocks.is_row.device
    return torch.from_numpy(is_masked).to(device) & blocks.is_row, torch.from_numpy(t).float().to(device)


def masked_inputs(blocks: Blocks, is_masked: Tensor) -> Tensor:
    """Return which rows hold a mask, [S, R], where those targets are masked; the last target has no row (shift 1)."""
    if blocks.shift == 0:
        return is_masked
    own = blocks.by_block(is_masked)
    return torch.cat([torch.zeros_like(own[..., :1]), own[..., :-1]], dim=2).flatten(1)


def _diffusion(
    learner: Learner, blocks: Blocks, settings: AdaptSettings, rng: np.random.Generator
) -> StepLosses | None:
    is_masked, t = noise(blocks, settings.min_noise, settings.max_noise, rng)
    places = torch.nonzero(is_masked.flatten())[:, 0]
    if not len(places):
        return None
    is_clean_adapted = settings.is_clean_adapted
    original = learner.original(blocks.tokens) if settings.soft or not is_clean_adapted else None
    clean = learner.clean(blocks.tokens) if is_clean_adapted else original
    assert clean is not None
    embedded = learner.embedded(blocks.inputs, masked_inputs(blocks, is_masked))
    states = learner.rows(blocks, embedded, clean, is_causal=False).flatten(0, 1)[places]
    tokens = blocks.targets.flatten()[places]
    if settings.loss == "elbo":
        weights = 1 / t.flatten()[places] / blocks.is_row.sum()
    else:
        weights = torch.full(tokens.shape, 1 / len(places), device=tokens.device)
    soft = blocks.is_text.flatten()[places] * settings.soft
    teacher = None if original is None else Teacher(_before(blocks, original, places), _output(learner, original=True))
    total, choices = label_loss(states, _output(learner), tokens, weights, soft, teacher, learner.dtype)
    accuracy = (choices == tokens).float().mean()
    if not is_clean_adapted:
        return StepLosses(total, len(places), {"accuracy": accuracy})
    ar = _autoregressive(learner, blocks, clean, original, settings.soft)
    return StepLosses(total + settings.clean * ar, len(places), {"accuracy": accuracy, "clean": ar.detach()})


# Jacobi.


def first_guesses(blocks: Blocks) -> Tensor:
    """Return what rows hold before any pass, [S, R]: an anchor, and pieces of the text up to it.

    The same pieces as the drafter `jacobi` begins with.
    """
    rows = torch.arange(blocks.is_row.shape[1], device=blocks.tokens.device)
    known = blocks.starts[:, None] + rows // blocks.size * blocks.size + 1
    places = (blocks.positions * _KNUTH % 2**32 * known) >> 32
    pieces = blocks.tokens.gather(1, places.clamp(0, blocks.tokens.shape[1] - 1))
    return torch.where(rows % blocks.size == 0, blocks.inputs, pieces)


def next_guesses(blocks: Blocks, choices: Tensor) -> Tensor:
    """Return what rows hold in the next pass, [S, R]: the anchor, and what the pass has chosen for the row, [S, R]."""
    own, anchors = blocks.by_block(choices), blocks.by_block(blocks.inputs)[..., :1]
    return torch.cat([anchors, own[..., :-1]], dim=2).flatten(1)


def _jacobi(learner: Learner, blocks: Blocks, settings: AdaptSettings, rng: np.random.Generator) -> StepLosses | None:
    """CLLM's losses (arXiv:2403.00835, equations 6 and 8).

    What the network says behind guesses shall be what it says behind the text itself, the fixed point; and behind the
    text, what the original says. Guesses are states of the original's Jacobi trajectory.
    """
    rows = torch.arange(blocks.is_row.shape[1], device=blocks.tokens.device)
    places = torch.nonzero((blocks.is_text & (rows % blocks.size > 0)).flatten())[:, 0]
    if not len(places):
        return None
    original = learner.original(blocks.tokens)
    guesses = first_guesses(blocks)
    for _ in range(int(rng.integers(min(_ITERATIONS, blocks.size - 1)))):  # as many guesses later it has arrived
        states = learner.original_rows(blocks, guesses, original)
        choices, _ = best_tokens(states.flatten(0, 1), _output(learner, original=True), learner.dtype)
        guesses = next_guesses(blocks, choices.view_as(guesses))
    clean = learner.clean(blocks.tokens)
    states = learner.rows(blocks, learner.embedded(guesses), clean, is_causal=True).flatten(0, 1)[places]
    tokens = blocks.targets.flatten()[places]
    fixed = Teacher(_before(blocks, clean, places).detach(), _output(learner).detach())
    weights = torch.full(tokens.shape, 1 / len(places), device=tokens.device)
    total, choices = label_loss(
        states, _output(learner), tokens, weights, torch.ones_like(weights), fixed, learner.dtype
    )
    accuracy = (choices == tokens).float().mean()
    ar = _autoregressive(learner, blocks, clean, original, settings.soft)
    return StepLosses(total + settings.clean * ar, len(places), {"accuracy": accuracy, "clean": ar.detach()})


# Both.


def _autoregressive(learner: Learner, blocks: Blocks, clean: Clean, original: Clean | None, soft: float) -> Tensor:
    """Return the loss of the clean tokens that predict the response; None for an original that nobody learns from."""
    places = torch.nonzero(blocks.is_response.flatten())[:, 0]
    tokens = blocks.tokens.flatten()[places + 1]
    weights = torch.full(tokens.shape, 1 / len(places), device=tokens.device)
    shares = torch.full_like(weights, soft if original is not None else 0.0)
    teacher = (
        None if original is None else Teacher(original.states.flatten(0, 1)[places], _output(learner, original=True))
    )
    states = clean.states.flatten(0, 1)[places]
    return label_loss(states, _output(learner), tokens, weights, shares, teacher, learner.dtype)[0]


def _before(blocks: Blocks, clean: Clean, places: Tensor) -> Tensor:
    """Return the clean states that predict the targets of some rows, [n, D]; any state for those behind the text."""
    columns = blocks.tokens.shape[1]
    sequence = torch.arange(len(blocks.tokens), device=places.device)[:, None] * columns
    found = (blocks.positions + blocks.shift - 1).clamp(0, columns - 1) + sequence
    return clean.states.flatten(0, 1)[found.flatten()[places]]


def _output(learner: Learner, *, original: bool = False) -> Tensor:
    return (learner.original_network if original else learner.network).unembedding
