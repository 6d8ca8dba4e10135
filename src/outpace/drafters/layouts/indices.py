"""Which token each row of a published head stands for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from outpace.errors import WeightsError
from outpace.types import RawTensor

_TYPES = {"I64": "<i8", "I32": "<i4"}
_MOST_TOKENS = 1 << 21  # several times the largest vocabulary known


def head_tokens(
    tensors: Mapping[str, RawTensor], num_rows: int, vocab_size: int, where: str, offsets: bool = True
) -> tuple[int, ...]:
    """Return the token of each of a head's rows.

    tensors: of the file, with `d2t` unless the head has all rows of the vocabulary. It holds tokens, or (offsets) how
    far row i's lies from i. Raises WeightsError for what is no such map.
    """
    if vocab_size > _MOST_TOKENS:
        raise WeightsError(f"{where}: a vocabulary of {vocab_size} tokens is none: at most {_MOST_TOKENS}")
    head = tensors.get("lm_head.weight")
    if head is not None and head.shape[0] != num_rows:
        raise WeightsError(f"{where}: tensor 'lm_head.weight' has {head.shape[0]} rows, the config says {num_rows}")
    if num_rows == vocab_size:
        return tuple(range(vocab_size))  # a map beside a whole head is the identity, or left over
    if "d2t" not in tensors:
        raise WeightsError(f"{where}: tensor 'd2t' is missing: it says which tokens the head's {num_rows} rows are")
    tokens = integers(tensors["d2t"], (num_rows,), where)
    tokens = tokens + np.arange(num_rows) if offsets else tokens
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocab_size:
        raise WeightsError(f"{where}: tensor 'd2t' names tokens outside [0, {vocab_size})")
    if "t2d" in tensors and tensors["t2d"].shape != (vocab_size,):
        raise WeightsError(f"{where}: tensor 't2d' has shape {tensors['t2d'].shape}, the config says ({vocab_size},)")
    return tuple(tokens.tolist())


def integers(tensor: RawTensor, shape: tuple[int, ...], where: str) -> NDArray[np.int64]:
    """Return a tensor's integers; WeightsError if it has others than integers, or another shape."""
    if tensor.format not in _TYPES or tensor.shape != shape:
        raise WeightsError(
            f"{where}: tensor {tensor.name!r} must hold integers of shape {shape}, holds {tensor.format} {tensor.shape}"
        )
    return np.frombuffer(tensor.data.tobytes(), _TYPES[tensor.format]).astype(np.int64)
