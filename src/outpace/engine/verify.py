"""Two rules that decide on a draft: `Walk` (same text as plain decoding) and `Rejection` (same law, another text)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from outpace.errors import DrafterError
from outpace.ops import philox
from outpace.ops.protocol import Array
from outpace.runner import Runner, ScheduledSequence
from outpace.tree import DraftTree, Verification, walk
from outpace.types import COIN_STREAM, RESIDUAL_STREAM


class Rule(Protocol):
    """Decide on the drafts of a pass."""

    lossless: bool  # whether the text is that of plain decoding

    def verify(self, runner: Runner, logits: Array, batch: Sequence[ScheduledSequence]) -> list[Verification]:
        """Return one verification per sequence (an empty one where it is not scored)."""


class Walk:
    """Follow the target's own tokens through the tree: the text is what plain decoding writes."""

    lossless = True

    def verify(self, runner: Runner, logits: Array, batch: Sequence[ScheduledSequence]) -> list[Verification]:
        target_tokens = runner.sample(logits, batch)
        return [
            Verification(walk(s.tree, own)[0], own) if s.scored else Verification([], [])
            for s, own in zip(batch, target_tokens, strict=True)
        ]


class Rejection:
    """Accept a draft token x with probability min(1, p(x) / q(x)); else draw from the residual.

    Leviathan et al., arXiv:2211.17192, algorithm 1; for siblings, tried in order, SpecInfer, arXiv:2305.09781,
    with children drawn without replacement. Only true for one drafter's whole tree with the law q that
    it was drawn from, so other trees are refused. Greedy requests get plain decoding's text all the same.
    """

    lossless = False

    def verify(self, runner: Runner, logits: Array, batch: Sequence[ScheduledSequence]) -> list[Verification]:
        laws = runner.law(logits, batch)
        verdicts = []
        for s, p in zip(batch, laws, strict=True):
            if not s.scored:
                verdicts.append(Verification([], []))
                continue
            tree = s.tree
            path, token = reject(tree, p, PhiloxChance(s))
            picks = [-1] * (len(tree) + 1)
            for parent, child in zip([-1, *path], path, strict=False):
                picks[parent + 1] = tree.tokens[child]
            picks[(path[-1] if path else -1) + 1] = token
            verdicts.append(Verification(path, picks))
        return verdicts


class Chance(Protocol):
    """The randomness of `reject`; depth counts accepted tokens."""

    def accepts(self, probability: float, depth: int, token: int) -> bool:
        """Return True with the given probability."""

    def draw(self, law: NDArray[np.float64], depth: int) -> int:
        """Return a token drawn from `law`, [V]."""


def reject(tree: DraftTree, p: NDArray[np.float64], chance: Chance) -> tuple[list[int], int]:
    """Return the accepted path and the token after it (correction or bonus).

    p: [N + 1, V], the target's law at the root and at every node. tree.q: the drafter's, same rows.
    """
    if len(tree):
        _check_law(tree, p)
    path: list[int] = []
    node = -1
    while True:
        target = p[node + 1]
        children = tree.children(node)
        draft = tree.q[node + 1] if tree.q is not None and children else target
        for child in children:
            token = tree.tokens[child]
            residual = np.maximum(target - draft, 0.0)
            if not residual.any() or chance.accepts(min(1.0, target[token] / draft[token]), len(path), token):
                path.append(child)
                node = child
                break
            target = residual / residual.sum()
            draft = np.where(np.arange(len(draft)) == token, 0.0, draft)  # the next sibling is drawn without it
            draft = draft / max(draft.sum(), np.finfo(np.float64).tiny)
        else:
            return path, chance.draw(target, len(path))


def _check_law(tree: DraftTree, p: NDArray[np.float64]) -> None:
    if tree.q is None:
        raise DrafterError(
            "the rejection rule needs one drafter's whole tree with the law q that it was drawn from; this draft is "
            "merged, pruned or has no q: use a drafter that gives q (draft_model), or the default rule"
        )
    if tree.q.shape != p.shape:
        raise DrafterError(f"a draft's q must be [nodes + 1, vocabulary] = {list(p.shape)}, got {list(tree.q.shape)}")
    for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
        if not tree.q[parent + 1, token] > 0:
            raise DrafterError(f"draft node {node} has token {token}, to which its own law q gives no probability")


class PhiloxChance:
    """Coins and residual draws keyed by (seed, position, token), from streams of their own."""

    def __init__(self, s: ScheduledSequence) -> None:
        self.seed, self.sample = s.request.seed, s.request.sample_index
        self.position = s.end

    def accepts(self, probability: float, depth: int, token: int) -> bool:
        return bool(philox.uniform_at(self.seed, self.position + depth, token, self.sample, COIN_STREAM) < probability)

    def draw(self, law: NDArray[np.float64], depth: int) -> int:
        noise = philox.gumbel(self.seed, self.position + depth, len(law), self.sample, RESIDUAL_STREAM)
        with np.errstate(divide="ignore"):
            return int(np.argmax(np.log(law) + noise))
