"""Verification: `ExactMatch` (identical output), `RejectionSampling` (identical distribution), `Typical` (neither)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from outpace.errors import DrafterError
from outpace.ops import philox
from outpace.ops.layers import Array
from outpace.runner import Runner, ScheduledSequence
from outpace.types import COIN_STREAM, RESIDUAL_STREAM
from outpace.types.tree import NO_TOKEN, DraftTree, Verification


class Verifier(Protocol):
    """Decide on the drafts of a pass."""

    is_lossless: bool  # whether the output is that of plain decoding

    def check(self, tree: DraftTree, vocab_size: int) -> None:
        """Raise DrafterError for a draft that this verifier cannot decide on."""

    def verify(self, runner: Runner, logits: Array, batch: Sequence[ScheduledSequence]) -> list[Verification]:
        """Return one verification per sequence; logits: the scored rows of just these, [R, V]."""


class ExactMatch:
    """Follow the target's own tokens through the tree: the output is what plain decoding writes."""

    is_lossless = True

    def check(self, tree: DraftTree, vocab_size: int) -> None:
        """Accept any tree."""

    def verify(self, runner: Runner, logits: Array, batch: Sequence[ScheduledSequence]) -> list[Verification]:
        target_tokens = runner.sample(logits, batch)
        return [Verification(match(s.tree, own)[0], own) for s, own in zip(batch, target_tokens, strict=True)]


def match(tree: DraftTree, target_tokens: Sequence[int]) -> tuple[list[int], int]:
    """Return the accepted path (nodes) and the token after it (correction or bonus).

    target_tokens[0] is the target's token at the root, target_tokens[i + 1] at node i. Follow the tree while the
    target's token is among the children; keep the first that is not. The output is the target's own tokens, so it
    is what plain decoding writes (cf. Daliri et al., arXiv:2408.07978). A node behind which nothing can be sampled
    (NO_TOKEN) is not followed: its token is kept, and the next step meets the failure as plain decoding does.
    """
    if not tree.tokens:
        return [], target_tokens[0]
    child_of = {edge: node for node, edge in enumerate(zip(tree.parents, tree.tokens, strict=True))}
    path: list[int] = []
    node = -1
    while (child := child_of.get((node, target_tokens[node + 1]))) is not None and target_tokens[child + 1] != NO_TOKEN:
        path.append(child)
        node = child
    return path, target_tokens[node + 1]


class RejectionSampling:
    """Accept a draft token x with probability min(1, p(x) / q(x)); else draw from the residual.

    Leviathan et al. (arXiv:2211.17192), algorithm 1, and its extension to siblings (SpecInfer, arXiv:2305.09781)
    with children drawn without replacement. Only true for one drafter's whole tree with the distribution q that
    it was drawn from, so other trees are refused. Greedy requests get plain decoding's text all the same.
    """

    is_lossless = False

    def check(self, tree: DraftTree, vocab_size: int) -> None:
        _check_q(tree, vocab_size)

    def verify(self, runner: Runner, logits: Array, batch: Sequence[ScheduledSequence]) -> list[Verification]:
        verifications = []
        for scheduled, p in zip(batch, runner.probs(logits, batch), strict=True):
            tree = scheduled.tree
            path, token = reject(tree, p, PhiloxChance(scheduled))
            target_tokens = [NO_TOKEN] * (len(tree) + 1)
            for parent, child in zip([-1, *path], path, strict=False):
                target_tokens[parent + 1] = tree.tokens[child]
            target_tokens[(path[-1] if path else -1) + 1] = token
            verifications.append(Verification(path, target_tokens))
        return verifications


class Typical:
    """Accept what is typical of the target, whether it would have written it or not: lossy, on request only.

    "Typical acceptance" of Medusa (arXiv:2401.10774): a guess x is kept where p(x) > min(epsilon, delta * exp(-H(p))),
    p the target's distribution there and H its entropy: in a certain context only the likely, in an open one any that
    is not too unlikely. The longest such path wins, and the target's own token follows it. Greedy requests get plain
    decoding's text all the same: their p is one token's, whose mass, 1, is above epsilon. epsilon: in (0, 1).
    """

    is_lossless = False

    def __init__(self, epsilon: float, delta: float) -> None:
        self.epsilon, self.delta = epsilon, delta

    def check(self, tree: DraftTree, vocab_size: int) -> None:
        """Accept any tree."""

    def verify(self, runner: Runner, logits: Array, batch: Sequence[ScheduledSequence]) -> list[Verification]:
        verifications = []
        for s, p, own in zip(batch, runner.probs(logits, batch), runner.sample(logits, batch), strict=True):
            path = typical(s.tree, p, self.epsilon, self.delta)
            for parent, child in zip([-1, *path], path, strict=False):
                own[parent + 1] = s.tree.tokens[child]
            verifications.append(Verification(path, own))
        return verifications


def typical(tree: DraftTree, p: NDArray[np.float64], epsilon: float, delta: float) -> list[int]:
    """Return the longest path of typical nodes; of several the likeliest.

    p: [N + 1, V], the target's distribution at the root and at every node (zeros where it has none: behind such a node
    nothing can be sampled, so it is not followed).
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.where(p > 0, p * np.log(p), 0.0).sum(axis=1)
    threshold = np.minimum(epsilon, delta * np.exp(-entropy))
    best: tuple[int, float, int] = (0, 0.0, -1)  # length, log-probability, node
    reached: list[tuple[int, float] | None] = []  # the same of each node's path; None: not typical
    for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
        before = reached[parent] if parent >= 0 else (0, 0.0)
        chance = float(p[parent + 1, token])
        if before is None or chance <= threshold[parent + 1] or not p[node + 1].any():
            reached.append(None)
            continue
        length, likelihood = before[0] + 1, before[1] + float(np.log(chance))
        reached.append((length, likelihood))
        if (length, likelihood) > best[:2] or best[2] < 0:
            best = (length, likelihood, node)
    return tree.path(best[2])


class Chance(Protocol):
    """The randomness of `reject`; depth counts accepted tokens."""

    def accepts(self, probability: float, depth: int, token: int) -> bool:
        """Return True with the given probability."""

    def draw(self, probs: NDArray[np.float64], depth: int) -> int:
        """Return a token drawn from `probs`, [V]."""


def reject(tree: DraftTree, p: NDArray[np.float64], chance: Chance) -> tuple[list[int], int]:
    """Return the accepted path and the token after it (correction or bonus).

    p: [N + 1, V], the target's distribution at the root and at every node (zeros where it has none). tree.q: the
    drafter's, same rows.
    """
    _check_q(tree, p.shape[1])
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
                if not p[child + 1].any():  # nothing can be sampled behind it: the next step will say why
                    return path, token
                path.append(child)
                node = child
                break
            target = residual / residual.sum()
            draft = np.where(np.arange(len(draft)) == token, 0.0, draft)  # the next sibling is drawn without it
            draft = draft / max(draft.sum(), np.finfo(np.float64).tiny)
        else:
            return path, chance.draw(target, len(path))


def _check_q(tree: DraftTree, vocab_size: int) -> None:
    if not tree.tokens:
        return
    if tree.q is None:
        raise DrafterError(
            "rejection sampling needs one drafter's whole tree with the distribution q that it was drawn from; this "
            "draft is merged, pruned or has no q: use a drafter that gives q (draft_model), or exact match"
        )
    shape = (len(tree) + 1, vocab_size)
    if tree.q.shape != shape:
        raise DrafterError(f"a draft's q must be [nodes + 1, vocabulary] = {list(shape)}, got {list(tree.q.shape)}")
    for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
        if not tree.q[parent + 1, token] > 0:
            raise DrafterError(
                f"draft node {node} has token {token}, to which its own distribution q gives no probability"
            )


class PhiloxChance:
    """Coins and residual draws keyed by (seed, position, token), from streams of their own."""

    def __init__(self, scheduled: ScheduledSequence) -> None:
        request = scheduled.request
        self.seed, self.sample = request.seed, request.sample_index
        self.position = scheduled.end

    def accepts(self, probability: float, depth: int, token: int) -> bool:
        return bool(philox.uniform_at(self.seed, self.position + depth, token, self.sample, COIN_STREAM) < probability)

    def draw(self, probs: NDArray[np.float64], depth: int) -> int:
        noise = philox.gumbel(self.seed, self.position + depth, len(probs), self.sample, RESIDUAL_STREAM)
        with np.errstate(divide="ignore"):
            return int(np.argmax(np.log(probs) + noise))


EXACT_MATCH = ExactMatch()
REJECTION_SAMPLING = RejectionSampling()
