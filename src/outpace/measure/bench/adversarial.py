"""Prompts that no drafter expects: tokens drawn at random, and answers that write no token twice.

After random tokens a small model may soon repeat itself, and drafts pay. Where no token comes back, only a copy of the
prompt, once, could still be foreseen: drafts can do little but lose.
"""

from __future__ import annotations

import random

from outpace.measure.prompts import TaskPrompt
from outpace.tokenizer import Tokenizer

_LENGTH = 128  # tokens
_NO_REPETITION = 100.0  # taken off the logit of every token that was written before


def adversarial(tokenizer: Tokenizer, count: int, seed: int = 0) -> list[TaskPrompt]:
    """Return `count` prompts of random tokens, answered as any prompt, and as many answered without a repetition."""
    dice = random.Random(seed)
    usual = [token for token in range(tokenizer.vocab_size) if token not in tokenizer.control_ids]
    length = min(_LENGTH, len(usual))
    prompts = []
    for category, penalty in (("random tokens", 0.0), ("no repetition", _NO_REPETITION)):
        for _ in range(count):
            tokens = tuple(dice.sample(usual, length))
            prompts.append(TaskPrompt(category, tokenizer.decode(tokens), tokens, penalty))
    return prompts
