"""How much of a draft comes true at every anchor of a conversation, for drafts as each kind's drafter makes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from outpace.drafters.marginals import Choice, best_tree
from outpace.train.guesses import Guesses, Noise
from outpace.train.networks.medusa import MedusaNetwork
from outpace.train.networks.network import DraftNetwork

# As in `outpace.drafters`: least likely nodes, choices a position, positions that are drafted with the target's noise.
MIN_CONFIDENCE = {"eagle": 0.1, "block": 0.02, "medusa": 0.02}
_BLOCK_WIDTH, _NUM_NOISY = 8, {"block": 2, "medusa": 1}
_SHARED_NOISE = 0.2  # how often tokens agree that have the same noise, whatever they are

_NOWHERE = 1 << 30


def accepted(
    network: DraftNetwork, guesses: Guesses, budgets: Sequence[int], min_confidence: float | None = None
) -> NDArray[np.int64]:
    """Return how many tokens of a draft the text confirms at each anchor, for each budget of nodes, [A, budgets].

    A sampled conversation whose seed is known is drafted with the target's noise, another one greedily.
    min_confidence: of the drafter (None: as decoding has it).
    """
    own = guesses.own
    noise = Noise(own, max(network.head_tokens) + 1) if own.sampled and own.seed else None
    minimum = MIN_CONFIDENCE[network.kind] if min_confidence is None else min_confidence
    if network.kind == "eagle":
        places = _chain(guesses, noise, minimum)
    else:
        places = _one_pass(network, guesses, noise, max(budgets), minimum)
    return np.stack([np.cumprod(places < budget, axis=1).sum(axis=1) for budget in budgets], axis=1)


def _truth(guesses: Guesses, k: int) -> NDArray[np.int64]:
    """Return the text's token k + 1 places behind each anchor; -1 behind the end."""
    tokens, places = guesses.own.tokens, guesses.anchors + k + 1
    return np.where(places < len(tokens), tokens[np.minimum(places, len(tokens) - 1)], -1)


def _chain(guesses: Guesses, noise: Noise | None, minimum: float) -> NDArray[np.int64]:
    """Return the place in the draft of each depth's true token, [A, depths], for chains that end by confidence."""
    places = np.full((len(guesses.anchors), len(guesses.logits)), _NOWHERE, np.int64)
    product = np.ones(len(guesses.anchors))
    for k in range(len(guesses.logits)):
        columns, chances = guesses.best(k, 1, noise)
        confidence = chances[:, 0] if noise is None else _SHARED_NOISE + (1 - _SHARED_NOISE) * chances[:, 0]
        product *= confidence
        is_right = guesses.columns[columns[:, 0]] == _truth(guesses, k)
        places[is_right & (product >= minimum), k] = k
    return places


def _one_pass(
    network: DraftNetwork, guesses: Guesses, noise: Noise | None, budget: int, minimum: float
) -> NDArray[np.int64]:
    """Return the place in the draft of each depth's true token, [A, depths], for trees of positions' own guesses.

    The nodes come in the order in which a tree takes them in, so the tree of a smaller budget is their beginning.
    """
    accuracies = network.accuracies if isinstance(network, MedusaNetwork) else None
    width = _BLOCK_WIDTH if accuracies is None else accuracies.shape[1]
    levels: list[list[list[Choice]]] = [[] for _ in guesses.anchors]
    for k in range(len(guesses.logits)):
        is_noisy = noise is not None and k < _NUM_NOISY[network.kind]
        columns, chances = guesses.best(k, width, noise if is_noisy else None)
        if is_noisy:
            chances = np.float32(_SHARED_NOISE) + np.float32(1 - _SHARED_NOISE) * chances
        if accuracies is not None:
            chances = np.broadcast_to(accuracies[k, : columns.shape[1]].astype(np.float32), chances.shape)
        chances = np.minimum.accumulate(chances, axis=1)
        for level, tokens, own in zip(levels, guesses.columns[columns].tolist(), chances.tolist(), strict=True):
            level.append(list(zip(tokens, own, strict=True)))
    places = np.full((len(levels), len(guesses.logits)), _NOWHERE, np.int64)
    truth = np.stack([_truth(guesses, k) for k in range(len(guesses.logits))], axis=1).tolist()
    for row, level, tokens in zip(places, levels, truth, strict=True):
        tree = best_tree(level, budget, minimum, network.kind)
        nodes = {pair: node for node, pair in enumerate(zip(tree.parents, tree.tokens, strict=True))}
        node = -1
        for k, token in enumerate(tokens):
            found = nodes.get((node, token))
            if found is None:
                break
            row[k] = node = found
    return places
