"""What an adapted network brings on held-out text: its blocks decoded, all of them at once, each behind the true text.

A block is decoded as the engine does it, from slots that are all unknown, and compared with the text, which is the
original's own. So a pass counts for every block that is not finished yet; what a block got wrong is not what the
next one sees.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outpace.train.adapt.blocks import Blocks, make_blocks
from outpace.train.adapt.learner import Learner
from outpace.train.adapt.loss import best_tokens, label_loss
from outpace.train.adapt.objectives import first_guesses, masked_inputs, next_guesses, noise
from outpace.train.adapt.passes import Clean
from outpace.train.adapt.settings import AdaptSettings
from outpace.train.batch import by_length
from outpace.train.text.corpus import Conversation

THRESHOLDS = (0.9, 0.7, 0.5, 0.0)  # 0: all slots at once, in one pass


@dataclass(frozen=True, slots=True)
class Decoded:
    """Blocks decoded at one threshold (jacobi: 1).

    tokens_per_pass: of the text that comes out. A finished block runs again beside the next one's first pass.
    verified: tokens per pass where a pass of the original verifies each block: what equals the text, and the token
    behind; None for jacobi, whose passes verify what they read.
    agreement: the fraction of tokens that are the text's.
    """

    threshold: float
    tokens_per_pass: float
    verified: float | None
    agreement: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What one measurement found. accuracy: of masked slots, the rest of the block known (jacobi: of the last pass).

    clean_agreement, clean_perplexity: how often the network's next token behind the text is the original's, and its
    perplexity of the text; None where clean tokens are the original's. original_perplexity: the original's own.
    score: what the best checkpoint is chosen by.
    """

    rows: tuple[Decoded, ...]
    accuracy: float
    num_tokens: int
    original_perplexity: float
    clean_agreement: float | None
    clean_perplexity: float | None
    score: float


def measured_of(entry: Mapping[str, Any]) -> Measured:
    """Return what `asdict` made plain values of; other keys are left out."""
    values = {own.name: entry[own.name] for own in fields(Measured)}
    return Measured(**values | {"rows": tuple(Decoded(**row) for row in entry["rows"])})


@torch.no_grad()
def measure(
    learner: Learner, held_out: Sequence[Conversation], ends: Collection[int], settings: AdaptSettings
) -> Measured | None:
    """Return what a network brings on held-out text, on the original's greedy one if there is any; None without blocks.

    The score is the best `verified` of all thresholds (jacobi: tokens per pass). Where the clean tokens are no longer
    the original's, it is multiplied by `clean_agreement`: a network that jumps far, but elsewhere, is no gain.
    """
    totals = _Totals()
    for part in _parts([own for own in held_out if not own.sampled] or held_out, settings):
        blocks = make_blocks(part, settings.block, settings.shift, ends, learner.device)
        if blocks is None:
            continue
        original = learner.original(blocks.tokens)
        clean = learner.clean(blocks.tokens) if settings.is_clean_adapted else original
        if settings.kind == "diffusion":
            totals.add_accuracy(*_masked_accuracy(learner, blocks, clean, settings.seed))
            for threshold in THRESHOLDS:
                totals.add(threshold, blocks, *unmask(learner, blocks, clean, threshold))
        else:
            guesses, passes, right = iterate(learner, blocks, clean)
            totals.add_accuracy(*right)
            totals.add(1.0, blocks, guesses, passes)
        totals.add_clean(learner, blocks, original, clean if settings.is_clean_adapted else None)
    return totals.measured(settings) if totals.num_tokens else None


@torch.no_grad()
def unmask(learner: Learner, blocks: Blocks, clean: Clean, threshold: float) -> tuple[Tensor, Tensor]:
    """Decode the blocks by confidence: return the tokens of the targets [S, R], and the passes of each block [S, N].

    A pass fills every unknown target whose best token has a probability of at least `threshold`, and the most
    probable one of each block in any case (Fast-dLLM, arXiv:2505.22618, section 3.3).
    """
    tokens, is_known = blocks.targets.clone(), ~blocks.is_row
    passes = torch.zeros(blocks.by_block(is_known).shape[:2], dtype=torch.int64, device=learner.device)
    while not bool(is_known.all()):
        passes += ~blocks.by_block(is_known).all(dim=2)
        inputs = tokens if blocks.shift == 0 else next_guesses(blocks, tokens)
        embedded = learner.embedded(inputs, masked_inputs(blocks, ~is_known))
        states = learner.rows(blocks, embedded, clean, is_causal=False)
        chosen, confidence = _best(learner, states)
        confidence = confidence.masked_fill(is_known, -1.0)
        best = blocks.by_block(confidence).argmax(dim=2, keepdim=True)
        is_best = torch.zeros_like(blocks.by_block(is_known)).scatter_(2, best, True).flatten(1)
        filled = ((confidence >= threshold) | is_best) & ~is_known
        tokens = torch.where(filled, chosen, tokens)
        is_known = is_known | filled
    return tokens, passes


@torch.no_grad()
def iterate(learner: Learner, blocks: Blocks, clean: Clean) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Iterate the blocks to their fixed points: return its tokens [S, R], the passes of each block [S, N], and counts.

    The counts: rows in the first pass that already gave the fixed point's token, and all. A block is finished by the
    pass after which every token is known to be right: those that stand behind verified guesses only.
    """
    guesses = first_guesses(blocks)
    size = blocks.size
    passes = torch.zeros(blocks.by_block(blocks.is_row).shape[:2], dtype=torch.int64, device=learner.device)
    is_over = ~blocks.by_block(blocks.is_row).any(dim=2)
    first = tokens = guesses
    for number in range(size):
        passes += ~is_over
        tokens, _ = _best(learner, learner.rows(blocks, learner.embedded(guesses), clean, is_causal=True))
        first = tokens if number == 0 else first
        following = next_guesses(blocks, tokens)
        is_over = is_over | (blocks.by_block(following) == blocks.by_block(guesses)).all(dim=2)
        guesses = following
        if bool(is_over.all()):
            break
    right = (first == tokens) & blocks.is_row
    return tokens, passes, (int(right.sum()), int(blocks.is_row.sum()))


def _best(learner: Learner, states: Tensor) -> tuple[Tensor, Tensor]:
    tokens, probs = best_tokens(states.flatten(0, 1), learner.network.unembedding, learner.dtype)
    return tokens.view(states.shape[:2]), probs.view(states.shape[:2])


def _masked_accuracy(learner: Learner, blocks: Blocks, clean: Clean, seed: int) -> tuple[int, int]:
    """Return how many masked targets are right in one pass, and how many there are; every noise equally often."""
    is_masked, _ = noise(blocks, 0.0, 1.0, np.random.default_rng([seed, 2]))
    embedded = learner.embedded(blocks.inputs, masked_inputs(blocks, is_masked))
    chosen, _ = _best(learner, learner.rows(blocks, embedded, clean, is_causal=False))
    return int(((chosen == blocks.targets) & is_masked).sum()), int(is_masked.sum())


def _parts(held_out: Sequence[Conversation], settings: AdaptSettings) -> list[list[Conversation]]:
    """Return batches of conversations of similar length; those that come first, as many as may be measured."""
    chosen, rows = [], 0
    for own in held_out:
        if rows < settings.measured_rows:
            chosen.append(own)
            rows += len(own.tokens) - own.num_prompt
    return list(by_length(chosen, settings.tokens_per_batch))


class _Totals:
    """Sums over batches."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self._decoded = dict[float, np.ndarray[tuple[int], np.dtype[np.int64]]]()
        self._accuracy = np.zeros(2, np.int64)
        self._clean = np.zeros(4)  # tokens, the original's loss, the network's loss, equal choices

    def add_accuracy(self, right: int, total: int) -> None:
        self._accuracy += (right, total)

    def add(self, threshold: float, blocks: Blocks, tokens: Tensor, passes: Tensor) -> None:
        """Count tokens, passes, blocks, tokens that are the text's, and those of them with no wrong one before."""
        is_right = (tokens == blocks.targets) & blocks.is_text
        leading = (blocks.by_block(is_right).cumprod(dim=2)).sum()
        num_blocks = blocks.by_block(blocks.is_row).any(dim=2).sum()
        sums = torch.stack([blocks.is_text.sum(), passes.sum(), num_blocks, is_right.sum(), leading])
        self._decoded[threshold] = self._decoded.get(threshold, np.zeros(5, np.int64)) + sums.cpu().numpy()

    def add_clean(self, learner: Learner, blocks: Blocks, original: Clean, clean: Clean | None) -> None:
        """Count the tokens of the blocks, and the losses of the clean text."""
        self.num_tokens += int(blocks.is_text.sum())
        places = torch.nonzero(blocks.is_response.flatten())[:, 0]
        tokens = blocks.tokens.flatten()[places + 1]
        ones, zeros = torch.ones(len(places), device=learner.device), torch.zeros(len(places), device=learner.device)
        found = []
        for network, own in ((learner.original_network, original), (learner.network, clean)):
            if own is not None:
                states = own.states.flatten(0, 1)[places]
                found.append(label_loss(states, network.unembedding, tokens, ones, zeros, None, learner.dtype))
        losses = [float(loss) for loss, _ in found]
        equal = int((found[0][1] == found[-1][1]).sum())
        self._clean += (len(places), losses[0], losses[-1], equal)

    def measured(self, settings: AdaptSettings) -> Measured:
        """Return the means."""
        rows = [self._row(threshold, settings.kind == "diffusion") for threshold in self._decoded]
        num, own_loss, loss, equal = self._clean.tolist()
        agreement = equal / num if settings.is_clean_adapted else None
        best = max(row.tokens_per_pass if row.verified is None else row.verified for row in rows)
        return Measured(
            tuple(rows),
            float(self._accuracy[0] / max(self._accuracy[1], 1)),
            self.num_tokens,
            math.exp(own_loss / num),
            agreement,
            math.exp(loss / num) if settings.is_clean_adapted else None,
            best if agreement is None else best * agreement,
        )

    def _row(self, threshold: float, verifies: bool) -> Decoded:
        tokens, passes, blocks, right, leading = self._decoded[threshold].tolist()
        verified = (leading + blocks) / (passes + blocks) if verifies else None
        return Decoded(threshold, tokens / passes, verified, right / tokens)
