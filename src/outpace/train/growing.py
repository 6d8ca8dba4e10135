"""The trees that the drafter `eagle` grows by confidence, at every anchor of some conversations at once.

The control is the drafter's own (`drafters/growth.py`, `drafters/chances.py`); only the network's passes are batched:
at each level, over all anchors, the nodes that some budget's tree continues. Trees of different budgets continue
nearly the same nodes, so these are computed once.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from outpace.drafters.chances import chances_of_logprobs, chances_of_scores
from outpace.drafters.eagle import LOOK, EagleDrafter
from outpace.drafters.growth import GrowingTree, Shape
from outpace.train.batch import Batch
from outpace.train.networks.eagle import EagleNetwork
from outpace.train.views import Ints, View
from outpace.types.tree import DraftTree

Path = tuple[int, ...]  # tokens behind an anchor
Children = list[tuple[int, float]]


@dataclass(slots=True)
class _Anchor:
    """One place where drafts begin. trees: by budget. nodes: what the current level computes, by their paths."""

    at: int  # among the anchors of its conversation
    trees: list[GrowingTree]
    nodes: dict[Path, int]

    def grow(self, children: Sequence[Children]) -> list[int]:
        """Give every tree the children of its front; return the parents' places in this level of those in the next."""
        level, following, parents = self.nodes, dict[Path, int](), list[int]()
        for tree in self.trees:
            front = [()] if () in level else [tree.path(node) for node in tree.front]
            if not front or not tree.budget:
                continue
            tree.add([children[level[path]] for path in front])
            for node in tree.front:
                path = tree.path(node)
                if path not in following:
                    following[path] = len(following)
                    parents.append(level[path[:-1]])
            if tree.front:
                tree.segment((), 0)  # its nodes count as continued
        self.nodes = following
        return parents


@torch.no_grad()
def grow(
    network: EagleNetwork, batch: Batch, views: Sequence[View], budgets: Sequence[int], min_confidence: float | None
) -> list[list[list[DraftTree]]]:
    """Return the trees of every conversation's anchors, one for each budget of nodes.

    min_confidence: of the drafter (None: as decoding has it).
    """
    shape = Shape(_default("width"), _default("min_confidence", min_confidence), _default("min_expanded"))
    anchors = [
        [
            _Anchor(at, [GrowingTree(shape, view.budget(at, most)) for most in budgets], {(): 0})
            for at in range(len(view.anchors))
        ]
        for view in views
    ]
    prefix, states = network.begin(batch)
    sees = torch.zeros(*states.shape[:3], 0, dtype=torch.bool, device=states.device)
    depth = 0
    while True:
        depth += 1
        parents = [
            _grow(own, view, network.normed(states[b]), depth, _default("branches"))
            for b, (own, view) in enumerate(zip(anchors, views, strict=True))
        ]
        width = max(len(own) for some in parents for own in some)
        if not width:
            return [[[tree.build("eagle") for tree in anchor.trees] for anchor in own] for own in anchors]
        tokens, origins = _level(anchors, parents, batch.anchors.shape[1], width)
        origin = torch.from_numpy(origins).to(states.device)
        features = _pick(states, origin)
        itself = torch.eye(width, dtype=torch.bool, device=states.device).expand(*origin.shape, width)
        sees = torch.cat([_pick(sees, origin), itself], dim=-1)
        states = network.extend(prefix, depth, torch.from_numpy(tokens).to(states.device), features, sees)


def _grow(anchors: Sequence[_Anchor], view: View, states: Tensor, depth: int, branches: int) -> list[list[int]]:
    """Grow the trees of one conversation by a level; states: [A, M, D], what the head multiplies."""
    where = [(anchor.at, place) for anchor in anchors for place in anchor.nodes.values()]
    if not where:
        return [[] for _ in anchors]
    at, place = np.array(where).T
    own = view.anchors[at]
    logits = view.logits(states[torch.from_numpy(at).to(states.device), torch.from_numpy(place).to(states.device)], own)
    best = view.best(logits, own + depth, LOOK, has_noise=True)
    tokens = view.columns[best.columns].tolist()
    found: dict[int, list[Children]] = {}
    for i, a in enumerate(at.tolist()):
        found.setdefault(a, []).append(_children(view, tokens[i], best.logprobs[i], best.scores[i], branches))
    return [anchor.grow(found.get(anchor.at, [])) for anchor in anchors]


def _children(view: View, tokens: list[int], logprobs: Any, scores: Any, branches: int) -> Children:
    count = int(np.isfinite(scores).sum())
    if view.noise is None:
        chances = chances_of_logprobs(logprobs[:count].tolist())
    else:
        chances = chances_of_scores(scores[:count].tolist(), view.temperature)
    return list(zip(tokens[: min(branches, count)], chances, strict=False))


def _level(
    anchors: Sequence[Sequence[_Anchor]], parents: Sequence[Sequence[list[int]]], size: int, width: int
) -> tuple[Ints, Ints]:
    """Return the tokens of the next level's nodes, and their parents' places in this one, [B, A, M]; 0: padding."""
    tokens, origins = np.zeros((2, len(anchors), size, width), np.int64)
    for b, (some, own) in enumerate(zip(anchors, parents, strict=True)):
        for anchor, places in zip(some, own, strict=True):
            for path, place in anchor.nodes.items():
                tokens[b, anchor.at, place], origins[b, anchor.at, place] = path[-1], places[place]
    return tokens, origins


def _pick(x: Tensor, places: Tensor) -> Tensor:
    """Return rows of x [B, A, M, n] by their places [B, A, M']: [B, A, M', n]."""
    return x.gather(2, places[..., None].expand(*places.shape, x.shape[-1]))


def _default(name: str, given: Any = None) -> Any:
    """Return what the drafter's parameter is where nobody says otherwise."""
    return inspect.signature(EagleDrafter).parameters[name].default if given is None else given
