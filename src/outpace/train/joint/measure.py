"""How far a tuned target has moved from the original, on text that the original wrote."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from outpace.errors import UsageError
from outpace.train.batch import by_length
from outpace.train.distill.labelled import labelled, num_labels
from outpace.train.distill.measure import CHUNK
from outpace.train.distill.objectives import forward_kl
from outpace.train.networks.lora import Adapter
from outpace.train.networks.transformer import TransformerNetwork
from outpace.train.text.corpus import Conversation


@dataclass(frozen=True, slots=True)
class Divergence:
    """A tuned target beside the original on held-out responses.

    top1: how often their most likely tokens agree. kl: the mean of KL(original || tuned), in nats a token. perplexity,
    original_perplexity: of the responses under each.
    """

    positions: int
    top1: float
    kl: float
    perplexity: float
    original_perplexity: float


@torch.no_grad()
def divergence(network: TransformerNetwork, adapter: Adapter, conversations: Sequence[Conversation]) -> Divergence:
    """Compare a network whose adapter is on with itself while it is off; UsageError if no text has a response."""
    unembedding = network.unembedding
    total = agreed = 0
    kl = surprise = original_surprise = 0.0
    for part in by_length(own for own in conversations if num_labels(own)):
        batch = labelled(part, unembedding.device)
        assert batch is not None
        mine = _final(network, batch.tokens, batch.places)
        with adapter.off():
            theirs = _final(network, batch.tokens, batch.places)
        for start in range(0, len(mine), CHUNK):
            rows = slice(start, start + CHUNK)
            tuned, original = (network.logits(x[rows]).float().log_softmax(dim=-1) for x in (mine, theirs))
            following = batch.following[rows]
            kl += float(forward_kl(tuned, original).sum())
            surprise += float(F.nll_loss(tuned, following, reduction="sum"))
            original_surprise += float(F.nll_loss(original, following, reduction="sum"))
            agreed += int((tuned.argmax(dim=-1) == original.argmax(dim=-1)).sum())
        total += len(mine)
    if not total:
        raise UsageError("there is no held-out text to compare models on: hold out more, or give more text")
    perplexities = (math.exp(own / total) for own in (surprise, original_surprise))
    return Divergence(total, agreed / total, max(kl / total, 0.0), *perplexities)


def _final(network: TransformerNetwork, tokens: Tensor, places: Tensor) -> Tensor:
    states: Tensor = network(tokens)[network.last_tap]
    return states.flatten(0, 1)[places]
