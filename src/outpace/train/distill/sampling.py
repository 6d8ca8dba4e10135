"""Text of the student's own, to learn from where it goes when nobody leads it (GKD, arXiv:2306.13649, algorithm 1)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import torch

from outpace.train.networks.transformer import Memory, TransformerNetwork
from outpace.train.text.corpus import Conversation


@torch.no_grad()
def written_by(
    network: TransformerNetwork, conversations: Sequence[Conversation], count: int, ends: Collection[int], seed: int
) -> list[Conversation]:
    """Return the conversations with other responses: `count` tokens that the network draws at temperature 1.

    An end token ends a response. The same network, conversations and seed give the same text.
    """
    device = network.model.norm.weight.device
    lengths = torch.tensor([own.num_prompt for own in conversations], device=device)
    prompts = np.zeros((len(conversations), max(own.num_prompt for own in conversations)), np.int64)
    for row, own in zip(prompts, conversations, strict=True):
        row[: own.num_prompt] = own.tokens[: own.num_prompt]
    places = torch.arange(prompts.shape[1], device=device).expand(len(conversations), -1)
    memory = Memory()
    positions = torch.where(places < lengths[:, None], places, Memory.NOBODY)
    states = network(torch.from_numpy(prompts).to(device), positions, memory=memory)[network.last_tap]
    last = states[torch.arange(len(conversations), device=device), lengths - 1]
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for i in range(count):
        probs = torch.softmax(network.logits(last).float(), dim=-1).cpu()
        drawn.append(torch.multinomial(probs, 1, generator=generator))
        if i + 1 < count:
            last = network(drawn[-1].to(device), (lengths + i)[:, None], memory=memory)[network.last_tap][:, 0]
    responses = torch.cat(drawn, dim=1).numpy()
    return [_answered(own, _cut(row, ends)) for own, row in zip(conversations, responses, strict=True)]


def _cut(tokens: np.ndarray[tuple[int], np.dtype[np.int64]], ends: Collection[int]) -> list[int]:
    found = []
    for token in tokens.tolist():
        found.append(token)
        if token in ends:
            break
    return found


def _answered(own: Conversation, response: Sequence[int]) -> Conversation:
    prompt = own.tokens[: own.num_prompt]
    return replace(own, tokens=np.concatenate([prompt, np.array(response, np.int32)]), sampled=True, temperature=1.0)
