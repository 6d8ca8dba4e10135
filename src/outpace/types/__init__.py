"""The nouns: what a user asks for, what a network is run on, how a row becomes a token, what was guessed.

It imports nothing of the project but `errors`. Array code names shapes by suffix:

    T tokens in the batch   S segments        B requests      N draft nodes
    R scored rows           V vocabulary      D width         F feed-forward width
    H query heads           G key/value heads K head width    M context length

Positions and intervals are half-open. One request's context looks like this:

    position   0            start                len(tokens)
               | committed  | pending | draft nodes (a tree: position = depth)
    KV slot    0            start     start + len(pending) ...
               remembered   provisional: written by the pass, kept only by commit
"""

from __future__ import annotations

from outpace.types.mask_filling import Canvas, MaskFilling
from outpace.types.network import KVFormat, KVSpec, Quantization, RawTensor, Segment
from outpace.types.options import (
    Constraint,
    LogitsProcessor,
    Named,
    OptionKeywords,
    Options,
    given,
)
from outpace.types.request import COIN_STREAM, RESIDUAL_STREAM, TOKEN_STREAM, FinishReason, Request, TokenLogprob
from outpace.types.sampling_params import NUMERIC_PARAMS, SamplingParams

__all__ = [
    "COIN_STREAM",
    "NUMERIC_PARAMS",
    "RESIDUAL_STREAM",
    "TOKEN_STREAM",
    "Canvas",
    "Constraint",
    "FinishReason",
    "KVFormat",
    "KVSpec",
    "LogitsProcessor",
    "MaskFilling",
    "Named",
    "OptionKeywords",
    "Options",
    "Quantization",
    "RawTensor",
    "Request",
    "SamplingParams",
    "Segment",
    "TokenLogprob",
    "given",
]
