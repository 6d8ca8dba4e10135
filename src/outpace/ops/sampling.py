"""How a pass's rows of logits become tokens: arrays with one entry a scored row, built once a step.

An implementation takes them as they are: nothing here is read in a loop over rows in Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outpace.types import NUMERIC_PARAMS, TOKEN_STREAM, SamplingParams

# Why a row cannot be sampled, in the words of every implementation (`SamplingError.rows`).
NOTHING_ALLOWED = "no token is allowed here: a constraint, logit_bias or a logits processor forbids them all"
NOT_FINITE = "a logit is NaN or +inf: the model file or a logits processor is broken"


def outside(what: str, token: int, vocab_size: int) -> str:
    """Return why a row cannot be sampled whose bias or history names a token that has no logit."""
    return f"{what} names token {token}; the vocabulary is [0, {vocab_size})"


@dataclass(frozen=True, slots=True, eq=False)
class Ragged:
    """A list of numbers for each row: that of row r is values[bounds[r, 0] : bounds[r, 1]]. Rows may share values."""

    values: NDArray[Any]
    bounds: NDArray[np.int64]  # [R, 2]

    def __getitem__(self, row: int) -> NDArray[Any]:
        return self.values[self.bounds[row, 0] : self.bounds[row, 1]]

    def select(self, rows: NDArray[np.int64]) -> Ragged:
        """Return the lists of some rows."""
        return Ragged(self.values, self.bounds[rows])


@dataclass(frozen=True, slots=True, eq=False)
class SamplingBatch:
    """One entry for each row of logits. Build it with `SamplingRows`, or `greedy` where that is all there is.

    params: [R, P] float64, the numbers of SamplingParams (`NUMERIC_PARAMS` names the columns). None: every token is
    that of the row's largest logit, and the other arrays are None too.
    seeds uint64, sample_indices, positions, streams uint32, all [R]: what the noise is a function of; position is
    the absolute one of the sampled token (prompt included).
    prompts, outputs int32: earlier tokens; outputs end with the draft's path to the row. None: no row is penalised.
    masks: [R, ceil(V / 32)] uint32, the allowed tokens in bits as in `Constraint`, read where has_mask [R] is true.
    bias_tokens int32, biases float32: logit_bias, with the same bounds.
    """

    num_rows: int
    params: NDArray[np.float64] | None = None
    seeds: NDArray[np.uint64] | None = None
    sample_indices: NDArray[np.uint32] | None = None
    positions: NDArray[np.uint32] | None = None
    streams: NDArray[np.uint32] | None = None
    prompts: Ragged | None = None
    outputs: Ragged | None = None
    masks: NDArray[np.uint32] | None = None
    has_mask: NDArray[np.bool_] | None = None
    bias_tokens: Ragged | None = None
    biases: Ragged | None = None

    def __len__(self) -> int:
        return self.num_rows

    @staticmethod
    @cache
    def greedy(num_rows: int) -> SamplingBatch:
        """Return a batch whose tokens are those of the largest logits."""
        return SamplingBatch(num_rows)

    def at(self, positions: Sequence[int]) -> SamplingBatch:
        """Return the same batch for tokens at other positions, one a row."""
        return SamplingBatch(
            self.num_rows,
            self.params,
            self.seeds,
            self.sample_indices,
            np.array(positions, np.uint32),
            self.streams,
            self.prompts,
            self.outputs,
            self.masks,
            self.has_mask,
            self.bias_tokens,
            self.biases,
        )

    def select(self, rows: Sequence[int]) -> SamplingBatch:
        """Return the batch of some rows, in the order given."""
        if self.params is None:
            return SamplingBatch.greedy(len(rows))
        index = np.asarray(rows, np.int64)
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "num_rows"}
        taken: dict[str, Any] = {
            name: x.select(index) if isinstance(x, Ragged) else x[index] for name, x in given.items() if x is not None
        }
        return SamplingBatch(len(index), **taken)


class SamplingRows:
    """A batch that is being built, one sequence after another."""

    def __init__(self) -> None:
        self._is_argmax = True
        self._params: list[SamplingParams] = []  # by sequence, as are counts and histories
        self._counts: list[int] = []
        self._histories: list[tuple[Sequence[int], Sequence[int], Sequence[Sequence[int]]]] = []
        self._seeds: list[int] = []  # by row, as is the rest
        self._sample_indices: list[int] = []
        self._positions: list[int] = []
        self._streams: list[int] = []
        self._masks: dict[int, NDArray[np.uint32]] = {}

    def __len__(self) -> int:
        return len(self._positions)

    def add(
        self,
        params: SamplingParams,
        seed: int,
        sample_index: int,
        positions: Sequence[int],
        *,
        prompt: Sequence[int] = (),
        output: Sequence[int] = (),
        paths: Sequence[Sequence[int]] = (),
        masks: Sequence[NDArray[np.uint32] | None] = (),
        stream: int = TOKEN_STREAM,
    ) -> None:
        """Add the rows of one sequence, which sample the tokens at `positions`.

        prompt, output: read only if params.penalises; paths: by row, the draft tokens between output and row (none
        given: no row has any). masks: by row, the allowed tokens (none given: all are). All masks of a batch have the
        same length.
        """
        count, first = len(positions), len(self)
        self._is_argmax = self._is_argmax and params.is_argmax
        self._params.append(params)
        self._counts.append(count)
        self._histories.append((prompt, output, paths) if params.penalises else ((), (), ()))
        self._seeds += (seed,) * count
        self._sample_indices += (sample_index,) * count
        self._positions += positions
        self._streams += (stream,) * count
        for row, mask in enumerate(masks, first):
            if mask is not None:
                self._masks[row] = mask

    def build(self) -> SamplingBatch:
        """Return the batch of all rows added."""
        if self._is_argmax and not self._masks:
            return SamplingBatch.greedy(len(self))
        numbers = np.empty((len(self), len(NUMERIC_PARAMS)))
        first = 0
        for params, count in zip(self._params, self._counts, strict=True):
            numbers[first : first + count] = params.numbers
            first += count
        prompts, outputs = self._history() if any([p.penalises for p in self._params]) else (None, None)
        masks, has_mask = self._packed_masks() if self._masks else (None, None)
        bias_tokens, biases = self._bias() if any([p.logit_bias for p in self._params]) else (None, None)
        return SamplingBatch(
            len(self),
            numbers,
            np.array(self._seeds, np.uint64),
            np.array(self._sample_indices, np.uint32),
            np.array(self._positions, np.uint32),
            np.array(self._streams, np.uint32),
            prompts,
            outputs,
            masks,
            has_mask,
            bias_tokens,
            biases,
        )

    def _history(self) -> tuple[Ragged, Ragged]:
        prompts, outputs = [], []
        for (prompt, output, paths), count in zip(self._histories, self._counts, strict=True):
            prompts.append(np.array(prompt, np.int32))
            before = np.array(output, np.int32)
            for path in paths or ((),) * count:
                outputs.append(np.concatenate([before, np.array(path, np.int32)]) if path else before)
        own = _end_to_end(prompts)
        return Ragged(own.values, own.bounds.repeat(self._counts, axis=0)), _end_to_end(outputs)

    def _packed_masks(self) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
        num_rows = len(self)
        has_mask = np.zeros(num_rows, np.bool_)
        masks = np.zeros((num_rows, len(next(iter(self._masks.values())))), np.uint32)
        for row, mask in self._masks.items():
            masks[row] = mask
            has_mask[row] = True
        return masks, has_mask

    def _bias(self) -> tuple[Ragged, Ragged]:
        tokens = _end_to_end([np.array(list(params.logit_bias), np.int32) for params in self._params])
        bounds = tokens.bounds.repeat(self._counts, axis=0)
        values = np.array([value for params in self._params for value in params.logit_bias.values()], np.float32)
        return Ragged(tokens.values, bounds), Ragged(values, bounds)


class LastBatches:
    """Batches of one sequence alone, whose rows depend on nothing but their positions.

    The next one with as many rows is the last one at other positions, as long as the sequence is the same.
    """

    def __init__(self) -> None:
        self._last: dict[int, tuple[SamplingParams, int, int, SamplingBatch]] = {}  # by rows

    def of(self, params: SamplingParams, seed: int, sample_index: int, positions: Sequence[int]) -> SamplingBatch:
        """Return the batch of a sequence that has no mask and whose params do not penalise."""
        last = self._last.get(len(positions))
        if last is not None and last[0] is params and last[1:3] == (seed, sample_index):
            return last[3].at(positions)
        rows = SamplingRows()
        rows.add(params, seed, sample_index, positions)
        batch = rows.build()
        self._last[len(positions)] = params, seed, sample_index, batch
        return batch


def _end_to_end(lists: Sequence[NDArray[Any]]) -> Ragged:
    ends = np.cumsum([len(numbers) for numbers in lists], dtype=np.int64)
    values = np.concatenate(lists) if lists else np.empty(0, np.int32)
    return Ragged(values, np.stack([ends - [len(numbers) for numbers in lists], ends], axis=1))
