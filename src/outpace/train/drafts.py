"""How much of a draft comes true at every anchor of a conversation, for drafts as each kind's drafter makes them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from outpace.drafters.block import NUM_NOISY as BLOCK_NOISY
from outpace.drafters.block import WIDTH, BlockDrafter
from outpace.drafters.marginals import Branch, best_tree, branches_of
from outpace.drafters.medusa import NUM_NOISY as MEDUSA_NOISY
from outpace.drafters.medusa import MedusaDrafter
from outpace.train.growing import grow
from outpace.train.networks.eagle import EagleNetwork
from outpace.train.networks.medusa import MedusaNetwork
from outpace.train.networks.network import DraftNetwork
from outpace.train.target import FrozenTarget
from outpace.train.text.corpus import Conversation
from outpace.train.views import Ints, View, views_of
from outpace.types.tree import DraftTree


@torch.no_grad()
def accepted(
    network: DraftNetwork,
    target: FrozenTarget,
    conversations: Sequence[Conversation],
    budgets: Sequence[int],
    min_confidence: float | None = None,
) -> Iterator[tuple[Conversation, Ints]]:
    """Yield each conversation, and how many tokens of a draft its text confirms, [A, budgets]: at each anchor, for
    each budget of nodes.

    A sampled conversation whose seed is known is drafted with the target's noise, another one greedily.
    min_confidence: of the drafter (None: as decoding has it).
    """
    for batch, views in views_of(network, target, conversations):
        if isinstance(network, EagleNetwork):
            trees = grow(network, batch, views, budgets, min_confidence)
        else:
            depths = min(max(budgets), network.num_depths)
            states = torch.stack(network.states(batch, depths), dim=2)
            trees = [
                _one_pass(network, view, states[b, : len(view.anchors)], budgets, min_confidence)
                for b, view in enumerate(views)
            ]
        for view, own in zip(views, trees, strict=True):
            yield view.own, np.array([[_confirmed(view, at, tree) for tree in some] for at, some in enumerate(own)])


def _confirmed(view: View, at: int, tree: DraftTree) -> int:
    """Return how far a tree behind an anchor follows the text."""
    nodes = {pair: node for node, pair in enumerate(zip(tree.parents, tree.tokens, strict=True))}
    node, depth = -1, 0
    for token in view.own.tokens[view.anchors[at] + 1 :].tolist():
        if (node, token) not in nodes:
            break
        node, depth = nodes[node, token], depth + 1
    return depth


def _one_pass(
    network: DraftNetwork, view: View, states: Tensor, budgets: Sequence[int], min_confidence: float | None
) -> list[list[DraftTree]]:
    """Return the trees of positions' own guesses at each anchor; states: [A, depths, D], what the head multiplies."""
    accuracies = network.accuracies if isinstance(network, MedusaNetwork) else None
    width = WIDTH if accuracies is None else accuracies.shape[1]
    num_noisy, drafter = (BLOCK_NOISY, BlockDrafter) if accuracies is None else (MEDUSA_NOISY, MedusaDrafter)
    default = inspect.signature(drafter).parameters["min_confidence"].default
    minimum = default if min_confidence is None else min_confidence
    levels: list[list[list[Branch]]] = [[] for _ in view.anchors]
    for k in range(states.shape[1]):
        logits = view.logits(states[:, k], view.anchors)
        best = view.best(logits, view.anchors + k + 1, width, has_noise=k < num_noisy)
        has_noise = view.noise is not None and k < num_noisy
        for level, row, columns, scores in zip(levels, logits, best.columns, best.scores, strict=True):
            chosen = columns[np.isfinite(scores)].tolist()
            choices = branches_of(row.astype(np.float32), view.columns, chosen, view.temperature, has_noise=has_noise)
            if accuracies is not None:
                choices = [(token, chance) for (token, _), chance in zip(choices, accuracies[k].tolist(), strict=False)]
            level.append(choices)
    return [
        [best_tree(level[:budget], budget, minimum, network.kind) for budget in (view.budget(at, n) for n in budgets)]
        for at, level in enumerate(levels)
    ]
