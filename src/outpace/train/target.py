"""The model that a drafter is trained for, frozen: its hidden states, and the matrices that both share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from outpace.api import LanguageModel
from outpace.models.checkpoint import Checkpoint, open_checkpoint
from outpace.models.config import ModelConfig
from outpace.ops.formats import dequantise
from outpace.runner import Runner, ScheduledSequence
from outpace.types import Options, Request
from outpace.weights.trained import DrafterTarget

Tokens = NDArray[np.int32]

_PASS_TOKENS = 2048  # of a pass of the engine: its hidden states of all taps are held at once


@dataclass(frozen=True, slots=True)
class TargetIdentity:
    """What a drafter's file says of its target."""

    name: str
    fingerprint: str  # `Checkpoint.fingerprint`, in hex
    traits: DrafterTarget
    adapter: str | None = None  # fingerprint, in hex, of the one that it was tuned by beside its drafter


class FrozenTarget(Protocol):
    """What training needs of the target. Tensors are on `device`; nothing here is ever changed.

    embedding, unembedding: [V, D]; final_norm: [D]; inv_freq: [K / 2], float64.
    """

    config: ModelConfig
    identity: TargetIdentity
    device: torch.device
    embedding: Tensor
    unembedding: Tensor
    final_norm: Tensor
    inv_freq: Tensor
    rope_scale: float

    def states(self, sequences: Sequence[Tokens], taps: Sequence[int]) -> dict[int, list[Tensor]]:
        """Return the hidden states of each sequence at each tap, [N, D] float32.

        Taps as in `Transformer.forward`: 0 is the embedding, i the output of the i-th layer, n + 1 the final norm's.
        """

    def padded(self, tokens: Tensor, lengths: Sequence[int], taps: Sequence[int]) -> dict[int, Tensor]:
        """Return the same of sequences that lie on `device` already, padded to [B, T]: [B, T, D] for each tap.

        What stands behind a sequence's end is a number, but none to use.
        """


@dataclass(frozen=True, slots=True)
class SharedMatrices:
    """The matrices of a target, in float32 on one device, as both implementations hold them."""

    embedding: Tensor
    unembedding: Tensor
    final_norm: Tensor

    @classmethod
    def of(cls, checkpoint: Checkpoint, tied: bool, device: torch.device) -> SharedMatrices:
        """Return them from a checkpoint; a tied unembedding is the embedding itself."""

        def load(name: str) -> Tensor:
            return torch.from_numpy(dequantise(checkpoint.tensors[name]).astype(np.float32)).to(device)

        embedding = load("model.embed_tokens.weight")
        return cls(embedding, embedding if tied else load("lm_head.weight"), load("model.norm.weight"))


def identity_of(model: LanguageModel, name: str | None = None) -> TargetIdentity:
    """Return what a drafter's file will say of a loaded model; name: for people (None: what it was loaded as)."""
    config = model.config
    traits = DrafterTarget(
        model.tokenizer.fingerprint, config.model_type, config.vocab_size, config.width, config.num_layers
    )
    return TargetIdentity(name or model.name, model.loaded.fingerprint.hex(), traits)


class EngineTarget:
    """A loaded model's own passes: the hidden states are those of generation, to the last bit.

    On native ops these are products of 8-bit activations. Its passes run on a cache of their own, so nothing that the
    model remembers is touched; do not generate with it at the same time.
    """

    def __init__(self, model: LanguageModel, name: str | None = None) -> None:
        self.config, self.identity, self.device = model.config, identity_of(model, name), torch.device("cpu")
        shared = SharedMatrices.of(open_checkpoint(model.path), model.config.tied, self.device)
        self.embedding, self.unembedding, self.final_norm = shared.embedding, shared.unembedding, shared.final_norm
        self.inv_freq = torch.tensor(model.config.inv_freq, dtype=torch.float64)
        self.rope_scale = model.config.rope_scale
        self._model = model
        self._runner: Runner | None = None

    def states(self, sequences: Sequence[Tokens], taps: Sequence[int]) -> dict[int, list[Tensor]]:
        found: dict[int, list[Tensor]] = {tap: [] for tap in taps}
        for part in split_by_tokens(sequences, _PASS_TOKENS):
            for tap, rows in self._pass(part, taps).items():
                found[tap] += rows
        return found

    def padded(self, tokens: Tensor, lengths: Sequence[int], taps: Sequence[int]) -> dict[int, Tensor]:
        rows = [row[:length].astype(np.int32) for row, length in zip(tokens.numpy(), lengths, strict=True)]
        size = tokens.shape[1]
        return {
            tap: torch.stack([F.pad(x, (0, 0, 0, size - len(x))) for x in found])
            for tap, found in self.states(rows, taps).items()
        }

    def _pass(self, sequences: Sequence[Tokens], taps: Sequence[int]) -> dict[int, list[Tensor]]:
        runner = self._runner_for(sequences)
        batch = []
        try:
            for tokens in sequences:
                # A token that is not run follows, so that no row is scored: the unembedding would cost a fifth.
                ids = [*tokens.tolist(), 0]
                request = Request.of(ids, Options())
                batch.append(ScheduledSequence(runner.cache.open([]), request, ids, len(tokens)))
            passed = runner.forward(batch, taps)
        finally:
            for s in batch:
                s.table.close()
        answer = {}
        for tap in taps:
            whole = torch.from_numpy(runner.ops.numpy(passed.hidden[tap]))
            answer[tap] = [whole[rows.start : rows.stop] for rows in passed.rows]
        return answer

    def _runner_for(self, sequences: Sequence[Tokens]) -> Runner:
        own = self._model.runner
        size = own.cache.block_size
        blocks = sum(-(-len(tokens) // size) for tokens in sequences)
        if self._runner is None or self._runner.cache.capacity < blocks:
            self._runner = own.scratch(max(blocks, 2 * _PASS_TOKENS // size))
        return self._runner


def split_by_tokens(sequences: Sequence[Tokens], most: int) -> Iterator[Sequence[Tokens]]:
    """Yield runs of sequences of at most `most` tokens together; a longer sequence comes alone."""
    first = total = 0
    for i, tokens in enumerate(sequences):
        if i > first and total + len(tokens) > most:
            yield sequences[first:i]
            first, total = i, 0
        total += len(tokens)
    if first < len(sequences):
        yield sequences[first:]
