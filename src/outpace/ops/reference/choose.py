"""From logits to tokens: the law of `SamplingParams`, and the Gumbel-max draw from it.

Every number is float32, as the contract says; sums of probabilities (top-p, min-p, the law, log-softmax) are
float64. A token that may not come has the logit -inf. A draw is argmax(logit / temperature + Gumbel noise), and the
noise is a pure function of (seed, position, token, sample index), so the token is one of (context, seed, sample index).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from outpace.errors import UsageError
from outpace.ops.philox import gumbel
from outpace.types import Row, SamplingParams

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Ids = NDArray[np.int64]

_NEVER = np.float32(-np.inf)


def sample(logits: F32, rows: Sequence[Row], k: int = 1) -> Ids:
    """Return each row's k best tokens, best first, [R, k]."""
    assert len(logits) == len(rows), f"{len(logits)} rows of logits met {len(rows)} rows to choose"
    if k == 1 and all(_is_plain(row) for row in rows):
        return np.asarray(logits.argmax(axis=1)[:, None], np.int64)
    return np.array([_best(_scores(x, row), k) for x, row in zip(logits, rows, strict=True)], np.int64).reshape(-1, k)


def law(logits: F32, rows: Sequence[Row]) -> F64:
    """Return the law of each row's token, [R, V]; all mass on one token where the row is greedy."""
    assert len(logits) == len(rows), f"{len(logits)} rows of logits met {len(rows)} rows to choose"
    result = np.zeros(logits.shape, np.float64)
    for p, x, row in zip(result, logits, rows, strict=True):
        processed = _processed(x, row)
        if row.params.greedy:
            p[processed.argmax()] = 1.0
        else:
            p[:] = _softmax(processed)
    return result


def logprobs(logits: F32, tokens: Sequence[int]) -> F32:
    """Return the raw log-softmax of one token per row, [R]."""
    index = np.asarray(tokens, np.int64)[:, None]
    return np.take_along_axis(logits, index, axis=1)[:, 0] - _log_total(logits)


def top_k(logits: F32, k: int) -> tuple[Ids, F32]:
    """Return the k most likely tokens of each row, best first, and their raw log-softmax, both [R, k]."""
    tokens = np.array([_best(x, k) for x in logits], np.int64).reshape(-1, k)
    return tokens, np.take_along_axis(logits, tokens, axis=1) - _log_total(logits)[:, None]


def _log_total(logits: F32) -> F32:
    """Return log(sum(exp(row))), [R]: summed in float64, rounded to float32."""
    x = logits.astype(np.float64)
    largest = x.max(axis=1)
    return np.asarray(largest + np.log(np.exp(x - largest[:, None]).sum(axis=1)), np.float32)


def _is_plain(row: Row) -> bool:
    """Whether the row's token is the argmax of its raw logits."""
    return row.params.greedy and not row.params.penalises and not row.params.logit_bias and row.mask is None


def _scores(logits: F32, row: Row) -> F32:
    """Return what the argmax is taken of: the processed logits, plus noise unless the row is greedy."""
    processed = _processed(logits, row)
    if row.params.greedy:
        return processed
    return processed + gumbel(row.seed, row.position, len(processed), row.sample_index, row.stream)


def _processed(logits: F32, row: Row) -> F32:
    """Return the logits after all of `SamplingParams`, in its order; the filters' victims are -inf.

    top-k, top-p and min-p never drop the most likely token, so greedy rows leave them out.
    """
    params = row.params
    x = _penalised(logits.astype(np.float32), row)
    for token, bias in params.logit_bias.items():
        if not 0 <= token < len(x):
            raise UsageError(f"logit_bias names token {token}; the vocabulary is [0, {len(x)})")
        x[token] += np.float32(bias)
    if row.mask is not None:
        x[~_allowed(row.mask, len(x))] = _NEVER
    if x.max() == _NEVER:
        raise UsageError("no token is allowed here: the constraint's mask or logit_bias forbids them all")
    return x if params.greedy else _filtered(x / np.float32(params.temperature), params)


def _penalised(x: F32, row: Row) -> F32:
    """Apply the penalties for earlier tokens; `x` is changed."""
    params = row.params
    if params.repetition_penalty != 1.0:
        seen = np.unique(np.array([*row.prompt, *row.output], np.int64))
        factor = np.float32(params.repetition_penalty)
        x[seen] = np.where(x[seen] > 0, x[seen] / factor, x[seen] * factor)
    if params.presence_penalty or params.frequency_penalty:
        seen, counts = np.unique(np.array(row.output, np.int64), return_counts=True)
        x[seen] -= np.float32(params.presence_penalty)
        x[seen] -= np.float32(params.frequency_penalty) * counts.astype(np.float32)
    return x


def _allowed(mask: NDArray[np.uint32], vocabulary: int) -> NDArray[np.bool_]:
    """Return the packed mask as one bool per token."""
    words = -(-vocabulary // 32)
    if mask.shape != (words,) or mask.dtype != np.uint32:
        raise UsageError(
            f"a mask over {vocabulary} tokens must be uint32 [{words}], got {mask.dtype} {list(mask.shape)}"
        )
    bits = np.unpackbits(np.ascontiguousarray(mask, "<u4").view(np.uint8), bitorder="little")
    return bits[:vocabulary].astype(np.bool_)


def _filtered(x: F32, params: SamplingParams) -> F32:
    """Apply top-k, top-p and min-p one after another, each to the law that the one before it left."""
    if 0 < params.top_k < len(x):
        kept = _best(x, params.top_k)
        x = _only(x, kept)
    if params.top_p < 1.0:
        order = np.argsort(-x, kind="stable")  # most likely first, ties by id
        reached = np.cumsum(_softmax(x)[order]) >= params.top_p
        x = _only(x, order[: int(reached.argmax()) + 1 if reached.any() else len(x)])
    if params.min_p > 0.0:
        p = _softmax(x)
        x = _only(x, np.flatnonzero(p >= params.min_p * p.max()))
    return x


def _only(x: F32, kept: Ids) -> F32:
    result = np.full_like(x, _NEVER)
    result[kept] = x[kept]
    return result


def _softmax(x: F32) -> F64:
    p = np.exp(x.astype(np.float64) - float(x.max()))
    return np.asarray(p / p.sum())


def _best(scores: F32, k: int) -> Ids:
    """Return the ids of the k largest scores, largest first, ties by id."""
    if not 1 <= k <= len(scores):
        raise UsageError(f"the number of tokens to choose must be in [1, {len(scores)}], got {k}")
    if k == 1:
        return np.array([scores.argmax()], np.int64)
    last = np.partition(scores, len(scores) - k)[len(scores) - k]  # the k-th largest
    above, equal = np.flatnonzero(scores > last), np.flatnonzero(scores == last)
    chosen = np.concatenate([above, equal[: k - len(above)]])
    return np.asarray(chosen[np.lexsort((chosen, -scores[chosen]))])
