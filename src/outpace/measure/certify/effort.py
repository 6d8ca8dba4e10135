"""How much work the parts of an examination are: estimates for its progress and for the time that is left.

The unit is a row (one token in a forward pass). A pass costs about as much as a few rows by itself, because it reads
all weights. Drafts are left out: they trade passes for rows.
"""

from __future__ import annotations

from collections.abc import Sequence

_PASS = 8  # rows


def of_decoding(prompt_lengths: Sequence[int], num_tokens: int, *, cached: bool = False) -> int:
    """Return the effort of writing `num_tokens` after each prompt, all prompts in one batch."""
    prefill = 0 if cached else sum(prompt_lengths)
    return prefill + num_tokens * (_PASS + len(prompt_lengths))


def of_recomputing(prompt_lengths: Sequence[int], num_tokens: int) -> int:
    """Return the same without a cache: every token takes a pass over its whole sequence."""
    return num_tokens * (_PASS + sum(length + num_tokens // 2 for length in prompt_lengths))


def of_scoring(prompt_lengths: Sequence[int], num_tokens: int) -> int:
    """Return the effort of reading each prompt and the `num_tokens` after it, one sequence at a time."""
    return sum(_PASS + length + num_tokens for length in prompt_lengths)
