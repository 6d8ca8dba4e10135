"""Bytes that decoding must read, and how fast this machine reads: the limit that every speed is compared with."""

from __future__ import annotations

from statistics import median

from outpace.api import LanguageModel
from outpace.models.checkpoint import open_checkpoint
from outpace.ops.protocol import Ops

_READ = 100_000_000


def weight_bytes(lm: LanguageModel) -> int:
    """Return the bytes of weights that one pass reads, as stored: all but an embedding that is only looked up in."""
    embedding = 0 if lm.config.tied else open_checkpoint(lm.path).tensors["model.embed_tokens.weight"].data.nbytes
    return lm.num_bytes - embedding


def read_bandwidth(ops: Ops, repeats: int = 3) -> float:
    """Return GB/s of a streaming read by all threads of the ops, the median of a few."""
    return float(median(ops.read_bandwidth(_READ, repeats)))
