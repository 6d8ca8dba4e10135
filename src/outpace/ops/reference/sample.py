"""From logits to tokens: the distribution of `SamplingParams`, and the Gumbel-max sample from it.

Logits are float32; sums of probabilities (the filters, the distribution, log-softmax) are float64. A token that may
not come has the logit -inf. A sample is argmax(logit / temperature + Gumbel noise), and the noise is a pure function of
(seed, position, token, sample index), so the token is one of (context, seed, sample index).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from outpace.errors import SamplingError, UsageError
from outpace.ops.philox import gumbel
from outpace.ops.sampling import NOT_FINITE, NOTHING_ALLOWED, SamplingBatch, outside
from outpace.types import NUMERIC_PARAMS

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Ids = NDArray[np.int64]

_NEVER = np.float32(-np.inf)


def sample(logits: F32, batch: SamplingBatch, k: int = 1) -> Ids:
    """Return each row's k best tokens, best first, [R, k]."""
    _check_k(k, logits)
    rows = _processed(logits, batch)
    return np.array([_best(row.noisy(), k) for row in rows], np.int64).reshape(-1, k)


def probs(logits: F32, batch: SamplingBatch) -> F64:
    """Return the distribution of each row's token, [R, V]; all mass on one token where the row is greedy."""
    result = np.zeros(logits.shape, np.float64)
    for p, row in zip(result, _processed(logits, batch), strict=True):
        if row.greedy:
            p[row.logits.argmax()] = 1.0
        else:
            p[:] = _softmax(row.logits)
    return result


def logprobs(logits: F32, tokens: Sequence[int]) -> F32:
    """Return the raw log-softmax of one token per row, [R]."""
    if len(tokens) != len(logits):
        raise UsageError(f"{len(tokens)} tokens for logits of shape {list(logits.shape)}: give one a row")
    wrong = [token for token in tokens if not 0 <= token < logits.shape[1]]
    if wrong:
        raise UsageError(f"a token must be in [0, {logits.shape[1] - 1}], got {wrong[0]}")
    _check_finite(logits)
    index = np.asarray(tokens, np.int64)[:, None]
    return np.take_along_axis(logits, index, axis=1)[:, 0] - _log_total(logits)


def top_k(logits: F32, k: int) -> tuple[Ids, F32]:
    """Return the k most likely tokens of each row, best first, and their raw log-softmax, both [R, k]."""
    _check_k(k, logits)
    _check_finite(logits)
    tokens = np.array([_best(x, k) for x in logits], np.int64).reshape(-1, k)
    return tokens, np.take_along_axis(logits, tokens, axis=1) - _log_total(logits)[:, None]


def _log_total(logits: F32) -> F32:
    """Return log(sum(exp(row))), [R]: summed in float64, rounded to float32."""
    x = logits.astype(np.float64)
    largest = x.max(axis=1)
    return np.asarray(largest + np.log(np.exp(x - largest[:, None]).sum(axis=1)), np.float32)


def best_of_columns(
    logits: F32, columns: NDArray[np.int32], vocab_size: int, batch: SamplingBatch, k: int
) -> tuple[list[list[int]], list[list[float]], list[list[float]]]:
    """Return the k best tokens of rows whose columns belong to some tokens: ids, log-softmax, scores, R rows of k."""
    _check_k(k, logits)
    tokens = np.full((len(logits), k), -1, np.int64)
    logprobs, scores = np.full(tokens.shape, _NEVER), np.full(tokens.shape, _NEVER)
    for index, (x, own) in enumerate(zip(logits, columns, strict=True)):
        wide = np.full(vocab_size, _NEVER)
        wide[own[own >= 0]] = x[own >= 0]
        try:
            row = _process(wide, batch, index)
        except _RowError:
            continue
        noisy = row.noisy()
        best = _best(noisy, k)
        best = best[noisy[best] > _NEVER]
        tokens[index, : len(best)], scores[index, : len(best)] = best, noisy[best]
        total = _log_total(row.unfiltered[None])[0]
        logprobs[index, : len(best)] = np.minimum(row.unfiltered[best] - total, 0)
    return tokens.tolist(), logprobs.tolist(), scores.tolist()


# -- one row -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Row:
    """One row after all of `SamplingParams`, in its order: the logits of tokens that were dropped are -inf."""

    logits: F32
    greedy: bool
    noise: tuple[int, int, int, int]  # seed, position, sample index, stream
    unfiltered: F32  # the logits before the filters

    def noisy(self) -> F32:
        """Return what the argmax is taken of: the logits, plus noise unless the row is greedy."""
        if self.greedy:
            return self.logits
        seed, position, sample_index, stream = self.noise
        return self.logits + gumbel(seed, position, len(self.logits), sample_index, stream)


def _processed(logits: F32, batch: SamplingBatch) -> list[_Row]:
    """Return every row, processed; raises SamplingError that names all rows which have no token."""
    if len(batch) != len(logits):
        raise UsageError(f"a sampling batch of {len(batch)} rows met logits of shape {list(logits.shape)}")
    words = -(-logits.shape[1] // 32)
    if batch.masks is not None and (batch.masks.shape != (len(batch), words) or batch.masks.dtype != np.uint32):
        raise UsageError(f"masks must be uint32 [{len(batch)}, {words}], got {batch.masks.dtype} {batch.masks.shape}")
    rows, failures = [], {}
    for index, x in enumerate(logits):
        try:
            rows.append(_process(x.astype(np.float32), batch, index))
        except _RowError as error:
            failures[index] = str(error)
    if failures:
        raise SamplingError(failures)
    return rows


class _RowError(Exception):
    """Why this row has no token."""


def _process(x: F32, batch: SamplingBatch, row: int) -> _Row:
    if batch.params is None:
        _check_row(x)
        return _Row(x, True, (0, 0, 0, 0), x)
    assert batch.seeds is not None
    assert batch.positions is not None
    assert batch.sample_indices is not None
    assert batch.streams is not None
    params = dict(zip(NUMERIC_PARAMS, batch.params[row].tolist(), strict=True))
    greedy = params["temperature"] == 0.0
    _penalise(x, params, batch, row)
    if batch.bias_tokens is not None and batch.biases is not None:
        _check_tokens("logit_bias", batch.bias_tokens[row], len(x))
        x[batch.bias_tokens[row]] += batch.biases[row]
    if batch.masks is not None and batch.has_mask is not None and batch.has_mask[row]:
        x[~_allowed(batch.masks[row], len(x))] = _NEVER
    if not greedy:
        with np.errstate(over="ignore"):  # refused by the next line
            x = x / np.float32(params["temperature"])
    _check_row(x)
    noise = (batch.seeds[row], batch.positions[row], batch.sample_indices[row], batch.streams[row])
    seed, position, sample_index, stream = (int(number) for number in noise)
    return _Row(x if greedy else _filtered(x, params), greedy, (seed, position, sample_index, stream), x)


def _penalise(x: F32, params: dict[str, float], batch: SamplingBatch, row: int) -> None:
    """Apply the penalties for earlier tokens; `x` is changed."""
    repetition, presence, frequency = (params[f"{name}_penalty"] for name in ("repetition", "presence", "frequency"))
    if repetition == 1.0 and presence == 0.0 and frequency == 0.0:
        return
    assert batch.prompts is not None
    assert batch.outputs is not None
    prompt, output = batch.prompts[row], batch.outputs[row]
    _check_tokens("the prompt", prompt, len(x))
    _check_tokens("the output", output, len(x))
    if repetition != 1.0:
        seen = np.union1d(prompt, output)
        factor = np.float32(repetition)
        x[seen] = np.where(x[seen] > 0, x[seen] / factor, x[seen] * factor)
    if presence or frequency:
        seen, counts = np.unique(output, return_counts=True)
        x[seen] -= np.float32(presence)
        x[seen] -= np.float32(frequency) * counts.astype(np.float32)


def _allowed(mask: NDArray[np.uint32], vocabulary: int) -> NDArray[np.bool_]:
    """Return the packed mask as one bool per token."""
    bits = np.unpackbits(np.ascontiguousarray(mask, "<u4").view(np.uint8), bitorder="little")
    return bits[:vocabulary].astype(np.bool_)


# -- filters -----------------------------------------------------------------------------------------


def _filtered(x: F32, params: dict[str, float]) -> F32:
    """Apply the filters one after another, each to the distribution that the one before it left."""
    if params["top_n_sigma"] > 0.0:
        possible = x[x > _NEVER].astype(np.float64)
        x = _only(x, np.flatnonzero(x >= possible.max() - params["top_n_sigma"] * possible.std()))
    if 0 < params["top_k"] < len(x):
        x = _only(x, _best(x, int(params["top_k"])))
    if params["typical_p"] < 1.0:
        x = _keep_mass(x, _most_typical_first(x), params["typical_p"])
    if params["top_p"] < 1.0:
        x = _keep_mass(x, np.argsort(-x, kind="stable"), params["top_p"])  # most likely first, ties by id
    if params["min_p"] > 0.0:
        p = _softmax(x)
        x = _only(x, np.flatnonzero(p >= params["min_p"] * p.max()))
    return x


def _most_typical_first(x: F32) -> Ids:
    """Return the ids by how far a token's information -log p is from its expectation, the entropy; ties by id.

    Meister et al., arXiv:2202.00666, equation 6. Information and entropy share the term log(sum(exp(x))), which drops
    out: what is compared is each logit with the expected one.
    """
    below = x.astype(np.float64) - float(x.max())
    p = np.exp(below)
    expected = np.sum(p[p > 0] * below[p > 0]) / p.sum()
    return np.argsort(np.abs(below - expected), kind="stable")


def _keep_mass(x: F32, order: Ids, mass: float) -> F32:
    """Keep the smallest beginning of `order` whose probabilities sum to at least `mass`; all if none does."""
    reached = np.cumsum(_softmax(x)[order]) >= mass
    return _only(x, order[: int(reached.argmax()) + 1 if reached.any() else len(x)])


def _only(x: F32, kept: Ids) -> F32:
    result = np.full_like(x, _NEVER)
    result[kept] = x[kept]
    return result


def _softmax(x: F32) -> F64:
    p = np.exp(x.astype(np.float64) - float(x.max()))
    return np.asarray(p / p.sum())


def _best(scores: F32, k: int) -> Ids:
    """Return the ids of the k largest scores, largest first, ties by id."""
    if k == 1:
        return np.array([scores.argmax()], np.int64)
    last = np.partition(scores, len(scores) - k)[len(scores) - k]  # the k-th largest
    above, equal = np.flatnonzero(scores > last), np.flatnonzero(scores == last)
    best = np.concatenate([above, equal[: k - len(above)]])
    return np.asarray(best[np.lexsort((best, -scores[best]))])


# -- checks ------------------------------------------------------------------------------------------


def _check_row(x: F32) -> None:
    largest = x.max()
    if largest == _NEVER:
        raise _RowError(NOTHING_ALLOWED)
    if not np.isfinite(largest):  # NaN, if there is one, is the maximum
        raise _RowError(NOT_FINITE)


def _check_tokens(what: str, tokens: NDArray[np.int32], vocabulary: int) -> None:
    wrong = tokens[(tokens < 0) | (tokens >= vocabulary)]
    if len(wrong):
        raise _RowError(outside(what, int(wrong[0]), vocabulary))


def _check_finite(logits: F32) -> None:
    failures = {}
    for index, x in enumerate(logits):
        try:
            _check_row(x)
        except _RowError as error:
            failures[index] = str(error)
    if failures:
        raise SamplingError(failures)


def _check_k(k: int, logits: F32) -> None:
    if not 1 <= k <= logits.shape[1]:
        raise UsageError(f"the number of tokens a row must be in [1, {logits.shape[1]}], got {k}")
