"""Draft with heads that were trained on the target's last hidden state: each guesses one of the next positions."""

from __future__ import annotations

from collections.abc import Sequence

from outpace.drafters.features import HiddenStates
from outpace.drafters.head import Head, OwnRows
from outpace.drafters.marginals import Branch, Guess, LevelSampler, best_tree, drafted
from outpace.drafters.protocol import SequenceView
from outpace.errors import UsageError
from outpace.models.medusa import Medusa
from outpace.runner import Pass, Runner
from outpace.trace import Step
from outpace.types import Request
from outpace.types.tree import EMPTY, DraftTree

NUM_NOISY = 1  # positions that are drafted with the target's noise


class MedusaDrafter:
    """Put together what the heads guess: the tree whose tokens were likeliest on text of the target.

    A head's j-th branch is as likely as it was when its accuracies were measured (they are in the checkpoint). So which
    ranks a tree of n nodes has is known beforehand, and only its tokens depend on the text. Nodes whose product of
    accuracies is below `min_confidence` are left out.

    runner: the target's. The network has no keys and values: all it reads is one hidden state.
    """

    name = "medusa"
    is_one_pass = True

    def __init__(self, network: Medusa, runner: Runner, *, min_confidence: float = 0.05) -> None:
        if not 0.0 <= min_confidence <= 1.0:
            raise UsageError(f"min_confidence must be in [0, 1], got {min_confidence}")
        self.network, self.runner, self.min_confidence = network, runner, min_confidence
        self.taps: tuple[int, ...] = (network.tap,)
        config = network.config
        self._states = HiddenStates(runner.ops, runner.cache, self.taps)
        self._head = Head(config.head_tokens, config.num_fixed, network.pack_rows)
        self._sampler = LevelSampler(runner, len(config.accuracies[0]), NUM_NOISY)
        self._owns: dict[int, OwnRows] = {}
        self._requests: dict[int, Request] = {}

    def propose(self, sequences: Sequence[SequenceView], budgets: Sequence[int]) -> list[DraftTree]:
        trees = [EMPTY] * len(sequences)
        due = [i for i, sequence in enumerate(sequences) if budgets[i] and self._is_ready(sequence)]
        if due:
            guesses = self._guesses([sequences[i] for i in due], max(budgets[i] for i in due))
            for i, levels in zip(due, self._sampler.levels(guesses), strict=True):
                ranked = [self._measured(k, level) for k, level in enumerate(levels[: budgets[i]])]
                trees[i] = best_tree(ranked, budgets[i], self.min_confidence, self.name)
        return trees

    def _is_ready(self, sequence: SequenceView) -> bool:
        """Whether the hidden state before the sequence's last token is there."""
        if sequence.table is None or len(sequence.tokens) < 2:
            return False
        held = self._states.of(sequence.id)
        self._states.begin(held, sequence.table, sequence.table.length)
        return bool(held.rows) and held.end == len(sequence.tokens) - 1

    def _guesses(self, sequences: Sequence[SequenceView], depth: int) -> list[Guess]:
        """Return the logits of the next positions, as many as there are heads, at most `depth`."""
        ops, network = self.runner.ops, self.network
        (hidden,) = self._states.gather([self._states.of(sequence.id).rows[-1] for sequence in sequences])
        states = network.states(hidden, min(depth, network.config.num_heads))
        count, num_heads = len(sequences), len(states)
        by_sequence = [head * count + i for i in range(count) for head in range(num_heads)]
        fixed = ops.select(ops.stack(network.logits(states)), by_sequence)
        own = [self._own(sequence) for sequence in sequences]
        rows = self._head.logits(ops, fixed, ops.select(ops.stack(states), by_sequence), [num_heads] * count, own)
        guesses = []
        for sequence, logits, columns in zip(sequences, rows, own, strict=True):
            assert sequence.table is not None
            request = self._requests.setdefault(sequence.id, drafted(sequence.request))
            guesses.append(Guess(sequence.table, request, list(sequence.tokens), logits, columns.tokens))
        return guesses

    def _own(self, sequence: SequenceView) -> OwnRows:
        own = self._owns.get(sequence.id)
        if own is None:
            own = self._owns[sequence.id] = self._head.start()
        self._head.look_at(own, sequence.tokens)
        return own

    def _measured(self, head: int, level: Sequence[Branch]) -> list[Branch]:
        """Return a head's branches with the accuracies of their ranks."""
        return [
            (token, chance) for (token, _), chance in zip(level, self.network.config.accuracies[head], strict=False)
        ]

    def observe(self, steps: Sequence[Step], passed: Pass) -> None:
        """Keep each sequence's last hidden state."""
        self._states.keep(passed)
        for part in passed.batch:
            held = self._states.of(part.id)
            held.drop(held.end - 1)

    def forget(self, request: int) -> None:
        self._states.forget(request)
        self._owns.pop(request, None)
        self._requests.pop(request, None)
