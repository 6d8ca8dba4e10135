"""How near a student has come to its teacher, from text that the teacher wrote: no token is generated.

The tokens per step are those of a draft model whose drafts are its own most likely tokens: a draft is accepted as far
as it equals the text, as in `train.simulate`. That is decoding exactly for greedy text, so greedy text is what is
counted (if there is any).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from outpace.errors import UsageError
from outpace.train.batch import by_length
from outpace.train.distill.labelled import labelled, num_labels
from outpace.train.networks.transformer import TransformerNetwork
from outpace.train.simulate import num_steps
from outpace.train.target import FrozenTarget
from outpace.train.text.corpus import Conversation

CHUNK = 512  # positions whose logits are held at once


@dataclass(frozen=True, slots=True)
class Closeness:
    """A student beside its teacher on held-out responses.

    top1: how often their most likely tokens agree. perplexity, teacher_perplexity: of the responses under each.
    tokens_per_step: simulated, bonus included, with drafts of at most max_draft tokens.
    """

    positions: int
    top1: float
    perplexity: float
    teacher_perplexity: float
    tokens_per_step: float

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@torch.no_grad()
def closeness(
    network: TransformerNetwork, target: FrozenTarget, conversations: Sequence[Conversation], max_draft: int
) -> Closeness:
    """Measure a student on conversations; raises UsageError if none of them has a response."""
    total = agreed = 0
    surprise = teacher_surprise = 0.0
    texts: list[tuple[bool, NDArray[np.bool_]]] = []
    for part in by_length(own for own in conversations if num_labels(own)):
        batch = labelled(part, target.device)
        assert batch is not None
        last, own_last = target.config.num_layers + 1, network.last_tap
        theirs = target.padded(batch.tokens, batch.lengths, (last,))[last].flatten(0, 1)[batch.places]
        mine = network(batch.tokens)[own_last].flatten(0, 1)[batch.places]
        hits = []
        for start in range(0, len(mine), CHUNK):
            rows = slice(start, start + CHUNK)
            logits = network.logits(mine[rows]).float()
            teacher = F.linear(theirs[rows], target.unembedding).float()
            following = batch.following[rows]
            surprise += float(F.cross_entropy(logits, following, reduction="sum"))
            teacher_surprise += float(F.cross_entropy(teacher, following, reduction="sum"))
            guesses = logits.argmax(dim=-1)
            agreed += int((guesses == teacher.argmax(dim=-1)).sum())
            hits.append((guesses == following).cpu().numpy())
        total += len(mine)
        pieces = np.split(np.concatenate(hits), np.cumsum(batch.counts)[:-1])
        texts += [(own.sampled, hit) for own, hit in zip(part, pieces, strict=True)]
    if not total:
        raise UsageError("there is no held-out text to measure students on: hold out more, or give more text")
    chosen = [hit for sampled, hit in texts if not sampled] or [hit for _, hit in texts]
    steps = sum(num_steps(accepted(hit, max_draft)) for hit in chosen)
    return Closeness(
        total,
        agreed / total,
        math.exp(surprise / total),
        math.exp(teacher_surprise / total),
        sum(map(len, chosen)) / steps,
    )


def accepted(hits: NDArray[np.bool_], max_draft: int) -> NDArray[np.int64]:
    """Return how many tokens of a draft come true behind each token of a response but its last.

    hits: for each token of the response, whether it is the guess at the position before it. A draft has at most
    max_draft tokens, and no more than are left but one, which the target gives itself.
    """
    count = len(hits)
    runs = np.zeros(count + 1, np.int64)
    for i in range(count - 1, -1, -1):
        runs[i] = runs[i + 1] + 1 if hits[i] else 0
    left = np.arange(count - 2, -1, -1)
    return np.minimum(np.minimum(runs[1:count], max_draft), left)
