"""Prompts that no drafter expects: tokens drawn at random, and texts in which no token comes back.

After random tokens a small model may soon repeat itself, and drafts pay; without repetition they can only lose.
"""

from __future__ import annotations

import random

from outpace.prompts import TaskPrompt
from outpace.tokenizer import Tokenizer

_LENGTH = 128  # tokens
_NEVER_AGAIN = 100.0  # off the logit of every token that the text already has


def adversarial(tokenizer: Tokenizer, count: int, seed: int = 0) -> list[TaskPrompt]:
    """Return `count` prompts of random tokens, answered as any prompt, and as many answered without a repetition."""
    dice = random.Random(seed)
    usual = [token for token in range(tokenizer.vocab_size) if token not in tokenizer.control_ids]
    length = min(_LENGTH, len(usual))
    prompts = []
    for category, penalty in (("random tokens", 0.0), ("no repetition", _NEVER_AGAIN)):
        for _ in range(count):
            tokens = tuple(dice.sample(usual, length))
            prompts.append(TaskPrompt(category, tokenizer.decode(tokens), tokens, penalty))
    return prompts
