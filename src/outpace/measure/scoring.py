"""What the target computes along a given sequence: its logits at every token, in passes of a chosen width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from outpace.runner import Runner, ScheduledSequence
from outpace.types import Options, Request
from outpace.types.tree import DraftTree

_CHUNK = 256


def score(
    runner: Runner, prompt: Sequence[int], tokens: Sequence[int], width: int = 32
) -> Iterator[NDArray[np.float32]]:
    """Yield raw logits [up to `width`, V], `tokens` in order: row i is what the target makes of all before tokens[i].

    The tokens go through the network as drafts of `width` rows; width 1 is plain decoding. Uses a table of its own
    that shares nothing, and gives its blocks back.
    """
    sequence = [*prompt, *tokens]
    request = Request.of(prompt, Options(max_new_tokens=1, salt=b"score"))
    table = runner.cache.open((), request.options.salt)
    try:
        while table.length < len(prompt) - 1:
            s = ScheduledSequence(table, request, sequence, min(len(prompt) - 1, table.length + _CHUNK))
            runner.forward([s])
            table.commit(range(s.end - s.start), sequence[s.start : s.end])
        for first in range(len(prompt), len(sequence), width):
            draft = sequence[first : min(first + width, len(sequence)) - 1]
            s = ScheduledSequence(table, request, sequence[:first], first, DraftTree.chain(draft, "sequence"))
            yield runner.ops.numpy(runner.forward([s]).logits)
            table.commit(range(first + len(draft) - s.start), sequence[s.start : first + len(draft)])
    finally:
        table.close()


def softmax(logits: NDArray[np.float32], temperature: float = 1.0, top_k: int = 0) -> NDArray[np.float64]:
    """Return the probs of rows of logits, [R, V] float64, over the `top_k` most likely tokens (0: all).

    Ties at the edge go to the lowest ids.

    Written apart from ops' sampler on purpose: it is what the certificate compares that sampler with.
    """
    scaled = logits.astype(np.float64) / temperature
    if top_k:
        order = np.argsort(-scaled, axis=-1, kind="stable")
        np.put_along_axis(scaled, order[:, top_k:], -np.inf, axis=-1)
    mass = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    probs: NDArray[np.float64] = mass / mass.sum(axis=-1, keepdims=True)
    return probs
