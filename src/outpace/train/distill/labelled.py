"""What a step of distillation looks at: padded conversations, and the positions whose next token is learned.

Only the response is learned: of a conversation of N tokens, num_prompt of them prompt, positions num_prompt - 1 to
N - 2, whose next tokens are the response.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from outpace.train.text.corpus import Conversation


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """B conversations, padded to T tokens, with P positions to learn at.

    tokens: [B, T], 0 behind the end. places: [P], of the positions among the flattened B * T, conversation by
    conversation. following: [P], the text's next tokens. counts: positions of each conversation.
    """

    tokens: Tensor
    lengths: tuple[int, ...]
    places: Tensor
    following: Tensor
    counts: tuple[int, ...]


def labelled(conversations: Sequence[Conversation], device: torch.device) -> Labelled | None:
    """Return the batch of some conversations; None if no response has a token."""
    chosen = [own for own in conversations if num_labels(own) > 0]
    if not chosen:
        return None
    size = max(len(own.tokens) for own in chosen)
    tokens = np.zeros((len(chosen), size), np.int64)
    places = []
    for row, own in enumerate(chosen):
        tokens[row, : len(own.tokens)] = own.tokens
        places.append(row * size + np.arange(max(own.num_prompt - 1, 0), len(own.tokens) - 1))
    flat = np.concatenate(places)
    return Labelled(
        torch.from_numpy(tokens).to(device),
        tuple(len(own.tokens) for own in chosen),
        torch.from_numpy(flat).to(device),
        torch.from_numpy(tokens.reshape(-1)[flat + 1]).to(device),
        tuple(map(len, places)),
    )


def num_labels(own: Conversation) -> int:
    """Return how many positions of a conversation are learned."""
    return max(len(own.tokens) - 1 - max(own.num_prompt - 1, 0), 0)
