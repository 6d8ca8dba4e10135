"""Decode without autoregression: lay out a canvas of masks behind a text, and refine it pass by pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from outpace.drafters.protocol import SequenceView
from outpace.drafters.refine.block import Block, Guesses
from outpace.drafters.refine.rules import Rule
from outpace.errors import DrafterError
from outpace.ops.layers import Array
from outpace.ops.sampling import SamplingRows
from outpace.runner import Runner, ScheduledSequence
from outpace.types import Canvas, MaskFilling, SamplingParams
from outpace.types.tree import NO_TOKEN, DraftTree, Verification


class Refiner:
    """Guess a block of tokens together, and refine it in several passes; the next block follows on its text.

    Block diffusion (BD3-LM, arXiv:2503.09573) over the engine's own cache: a finished block is text like any other,
    whose keys and values the next pass computes as a chain, beside the next block's first. What a block's tokens see
    is a function of the text before and of the block alone, so batches, forks and preemption change nothing.

    slides: whether tokens are text as soon as no mask stands before them; the block moves on, and masks join at its
    end. length: tokens of a block; None: all that may still be written. A block's passes end as soon as the text up to
    its end stands. A canvas is as long whatever max_new_tokens says (unless length is None, or the network sees all),
    so a shorter limit gives the beginning of the same text.
    """

    is_lossless = False

    def __init__(
        self, name: str, filling: MaskFilling, rule: Rule, length: int | None, *, slides: bool = False
    ) -> None:
        self.name, self.filling, self.rule, self.length, self.slides = name, filling, rule, length, slides
        self._blocks: dict[int, Block] = {}  # by sequence

    # What a pass is given.

    def num_slots(self, num_tokens: int, num_left: int, context: int) -> int:
        """Return how many tokens a canvas behind `num_tokens` has at most; `num_left` may still be written."""
        if self.filling.sees_all:
            return num_left
        return self._length(num_tokens, num_left, context) - self.filling.shift

    @property
    def overhang(self) -> int:
        """How many slots a canvas may take beyond the tokens that a sequence may have."""
        return 0 if self.filling.sees_all or self.length is None else self.length

    def _length(self, num_tokens: int, num_left: int, context: int) -> int:
        """Return the length of the block behind `num_tokens`."""
        if self.length is None:
            return num_left
        return min(self.length, num_left if self.filling.sees_all else context - num_tokens)

    def lay(self, sequence: SequenceView, num_left: int, context: int) -> Canvas:
        """Return the sequence's canvas, as its block stands."""
        num_tokens = len(sequence.tokens)
        block = self._blocks.get(sequence.id)
        if block is None or block.start != num_tokens:
            block = Block.masked_from(num_tokens, self._length(num_tokens, num_left, context))
            self._blocks[sequence.id] = block
        whole = self.filling.sees_all and self.length is not None
        return self.canvas(block, num_left if whole else len(block))

    def canvas(self, block: Block, length: int) -> Canvas:
        """Return the canvas of `length` places that begins with a block; with a shift, the last one is no input."""
        filling = self.filling
        places = [*block.tokens, *[NO_TOKEN] * (length - len(block))]
        if not filling.sees_all:
            places = places[: length - filling.shift]
        return Canvas(
            tuple([filling.mask_token if token == NO_TOKEN else token for token in places]),
            tuple([token == NO_TOKEN for token in places]),
            num_known=block.start if filling.sees_all else filling.shift,
            num_scored=len(places) + filling.shift - self._first(block),
        )

    def _first(self, block: Block) -> int:
        """Return the first place that a pass is asked about: the first mask, unless the rule looks at tokens too."""
        return 0 if self.rule.looks_at_kept else block.masks[0]

    # What it makes of the pass.

    def check(self, tree: DraftTree, vocab_size: int) -> None:
        """Refuse any draft: a canvas stands in its place."""
        raise DrafterError(f"{self.name} refines its own canvas and takes no draft")

    def verify(self, runner: Runner, logits: Array, batch: Sequence[ScheduledSequence]) -> list[Verification]:
        """Refine every sequence's block; `target_tokens` are what is written of it: none while it is not finished."""
        blocks = [self._blocks[s.id] for s in batch]
        self.refine(runner, logits, batch, blocks)
        verifications = []
        for s, block in zip(batch, blocks, strict=True):
            request = s.request
            limit = request.max_new_tokens - (block.start - len(request.prompt))
            tokens = block.text(request.stop_tokens, limit)
            if tokens is not None:
                del self._blocks[s.id]
            elif self.slides and (count := block.masks[0]):
                tokens = block.tokens[:count]
                length = self._length(block.start + count, limit - count, runner.context)
                self._blocks[s.id] = block.moved(count, length)
            verifications.append(Verification([], tokens or []))
        return verifications

    def refine(
        self, runner: Runner, logits: Array, batch: Sequence[ScheduledSequence], blocks: Sequence[Block]
    ) -> None:
        """Refine each sequence's block by the logits of its canvas, [R, V]."""
        rows = list[int]()
        first = 0
        for s, block in zip(batch, blocks, strict=True):
            rows += range(first, first + len(block) - self._first(block))
            first += s.num_scored
        own = runner.ops.select(logits, rows)
        for s, block, guesses in zip(batch, blocks, self._guesses(runner, own, batch, blocks), strict=True):
            self.rule.refine(block, guesses, s.request.stop_tokens)
            block.num_passes += 1

    def _guesses(
        self, runner: Runner, logits: Array, batch: Sequence[ScheduledSequence], blocks: Sequence[Block]
    ) -> list[Guesses]:
        """Return what the logits of all blocks' places say: tokens with the noise of their positions."""
        ops, sampling = runner.ops, SamplingRows()
        current: list[int] = []
        for s, block in zip(batch, blocks, strict=True):
            places = range(block.start + self._first(block), block.start + len(block))
            request = s.request
            sampling.add(unpenalised(request.options.sampling), request.seed, request.sample_index, places)
            current += block.tokens[self._first(block) :]
        tokens = ops.sample(logits, sampling.build())[:, 0].tolist()
        probability = np.exp(ops.logprobs(logits, tokens)).tolist()
        kept: list[float] = []
        if self.rule.looks_at_kept:
            found = np.exp(ops.logprobs(logits, [max(token, 0) for token in current])).tolist()
            kept = [0.0 if token == NO_TOKEN else p for token, p in zip(current, found, strict=True)]
        entropy = entropies(ops.numpy(logits)) if self.rule.looks_at_entropy else []
        guesses, first = [], 0
        for block in blocks:
            before = self._first(block)
            own = slice(first, first + len(block) - before)
            first = own.stop
            guesses.append(
                Guesses(
                    [NO_TOKEN] * before + tokens[own],
                    [1.0] * before + probability[own],
                    kept[own],
                    [0.0] * before + entropy[own] if entropy else (),
                )
            )
        return guesses

    def forget(self, request: int) -> None:
        """Drop the block of a request."""
        self._blocks.pop(request, None)


def unpenalised(params: SamplingParams) -> SamplingParams:
    """Return the parameters without penalties: what stands before a place is not known while a block is refined."""
    if not params.penalises:
        return params
    return replace(params, repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0)


def entropies(logits: NDArray[np.float32]) -> list[float]:
    """Return the entropy of each row's distribution, in nats."""
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    weights = np.exp(x)
    total = weights.sum(axis=1)
    return list((np.log(total) - np.where(weights > 0, weights * x, 0.0).sum(axis=1) / total).tolist())
