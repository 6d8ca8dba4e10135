"""The teacher's next-token distributions: computed for each batch, or its most likely tokens kept on disk.

Whole distributions are exact, and cost a pass of the teacher for each step. The k most likely tokens and the mass of
the rest take 6 k bytes a position (token ids, and log-probabilities in float16), and are computed once for each
conversation, whoever asks first: later epochs, and later runs in the same folder, read them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from outpace.train.distill.labelled import Labelled, num_labels
from outpace.train.distill.objectives import Divergence, with_rest
from outpace.train.distill.rows import CHUNK
from outpace.train.target import FrozenTarget
from outpace.train.text.corpus import Conversation

_LEAST = 1e-7  # of the rest's probability


class Whole:
    """All of a teacher's distribution at P positions. states: final, [P, D]; the product runs in `dtype`."""

    def __init__(self, states: Tensor, unembedding: Tensor, dtype: torch.dtype, divergence: Divergence) -> None:
        self._states, self._matrix, self._divergence = states.to(dtype), unembedding.to(dtype), divergence

    def rows(self, start: int, stop: int) -> Callable[[Tensor], Tensor]:
        """Return the loss of positions [start, stop), as a function of the student's logits."""
        teacher = F.linear(self._states[start:stop], self._matrix).float().log_softmax(dim=-1)
        return lambda logits: self._divergence(logits.float().log_softmax(dim=-1), teacher)


class Likely:
    """The likely tokens of P positions, [P, k], their log-probabilities, and what is left for the rest."""

    def __init__(self, tokens: Tensor, logprobs: Tensor, divergence: Divergence) -> None:
        self._tokens, self._divergence = tokens, divergence
        rest = (1 - logprobs.exp().sum(dim=-1, keepdim=True)).clamp(min=_LEAST).log()
        self._logprobs = torch.cat([logprobs, rest], dim=-1).log_softmax(dim=-1)  # rounded numbers add up to 1 again

    def rows(self, start: int, stop: int) -> Callable[[Tensor], Tensor]:
        """Return the loss of positions [start, stop), as a function of the student's logits."""
        tokens, teacher = self._tokens[start:stop], self._logprobs[start:stop]
        return lambda logits: self._divergence(with_rest(logits.float(), tokens), teacher)


class LikelyTokens:
    """The k most likely tokens at every learned position of a text, in files of a folder; filled as they are asked for.

    An entry counts once its flag is set, after its numbers: whoever is killed in between loses that conversation's.
    """

    def __init__(self, folder: Path, text: Sequence[Conversation], k: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        counts = [num_labels(text[i]) for i in range(len(text))]
        self._firsts = np.cumsum([0, *counts])
        total = int(self._firsts[-1])
        self._tokens = _mapped(folder / "tokens.bin", np.dtype("<u4"), (total, k))
        self._logprobs = _mapped(folder / "logprobs.bin", np.dtype("<f2"), (total, k))
        self._is_there = _mapped(folder / "is_there.bin", np.dtype("?"), (len(text),))

    def of(
        self, places: Sequence[int], batch: Labelled, target: FrozenTarget, dtype: torch.dtype, divergence: Divergence
    ) -> Likely:
        """Return the distributions of a batch of conversations, given by their places in the text."""
        if not self._is_there[list(places)].all():
            self._fill(places, batch, target, dtype)
        rows = np.concatenate([np.arange(self._firsts[i], self._firsts[i + 1]) for i in places])
        tokens = torch.from_numpy(self._tokens[rows].astype(np.int64)).to(target.device)
        return Likely(tokens, torch.from_numpy(self._logprobs[rows].astype(np.float32)).to(target.device), divergence)

    @torch.no_grad()
    def _fill(self, places: Sequence[int], batch: Labelled, target: FrozenTarget, dtype: torch.dtype) -> None:
        last = target.config.num_layers + 1
        final = target.padded(batch.tokens, batch.lengths, (last,))[last].flatten(0, 1)[batch.places].to(dtype)
        matrix, k = target.unembedding.to(dtype), self._tokens.shape[1]
        found = []
        for start in range(0, len(final), CHUNK):
            logprobs = F.linear(final[start : start + CHUNK], matrix).float().log_softmax(dim=-1)
            found.append(logprobs.topk(k))
        values = torch.cat([own.values for own in found]).cpu().numpy()
        tokens = torch.cat([own.indices for own in found]).cpu().numpy()
        first = 0
        for i, count in zip(places, batch.counts, strict=True):
            rows = slice(int(self._firsts[i]), int(self._firsts[i + 1]))
            self._tokens[rows], self._logprobs[rows] = tokens[first : first + count], values[first : first + count]
            self._is_there[i] = True
            first += count


def _mapped(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return an array in a file, of zeros where it is new, or of another size."""
    size = int(np.prod(shape)) * dtype.itemsize
    mode = "r+" if path.exists() and path.stat().st_size == size else "w+"
    return np.memmap(path, dtype, mode, shape=shape)  # type: ignore[call-overload,no-any-return]
