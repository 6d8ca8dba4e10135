"""Rotary frequencies: how fast each pair of channels turns with the position, and how long contexts slow them down.

RoPE: Su et al. 2021, arXiv:2104.09864. All in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from outpace.errors import WeightsError
from outpace.weights.trained import Entries

Frequencies = NDArray[np.float64]
Scaled = tuple[Frequencies, float]  # frequencies, and the factor of cos and sin
Scaling = Callable[[Frequencies, Mapping[str, Any], float, int], Scaled]  # (frequencies, scaling, theta, context)


def frequencies(theta: float, head_width: int, scaling: Mapping[str, Any], context: int) -> Scaled:
    """Return the angle per position of each of head_width / 2 pairs, and the factor of cos and sin.

    scaling: Hugging Face's `rope_scaling` (empty: none). Its kind "factors" is ours: a divisor for each pair, as
    GGUF's tensor rope_freqs.weight has them.
    """
    inv_freq = theta ** (-np.arange(0, head_width, 2, dtype=np.float64) / head_width)
    kind = scaling.get("rope_type", "default")
    if kind not in _KINDS:
        raise WeightsError(f"rope scaling {kind!r} is not supported; supported are {', '.join(_KINDS)}")
    return _KINDS[kind](inv_freq, scaling, theta, context)


def rotary(entries: Entries, head_width: int) -> tuple[tuple[float, ...] | None, float]:
    """Return the frequencies and the factor of cos and sin, if a drafter's file states them."""
    if "rope_theta" not in entries.raw:
        return None, 1.0
    scaling = entries.raw.get("rope_scaling") or {}
    if head_width < 2 or head_width % 2 or not isinstance(scaling, Mapping):
        raise entries.error("head_width", f"must be even, is {head_width}: rotary embeddings turn pairs")
    inv_freq, scale = frequencies(entries.number("rope_theta"), head_width, scaling, entries.count("context"))
    return tuple(inv_freq.tolist()), scale


def _default(inv_freq: Frequencies, scaling: Mapping[str, Any], theta: float, context: int) -> Scaled:
    return inv_freq, 1.0


def _linear(inv_freq: Frequencies, scaling: Mapping[str, Any], theta: float, context: int) -> Scaled:
    return inv_freq / scaling["factor"], 1.0


def _factors(inv_freq: Frequencies, scaling: Mapping[str, Any], theta: float, context: int) -> Scaled:
    return inv_freq / np.array(scaling["factors"], np.float64), 1.0


def _llama3(inv_freq: Frequencies, scaling: Mapping[str, Any], theta: float, context: int) -> Scaled:
    """Slow down pairs of long wavelength, leave short ones, and blend in between (Llama 3.1)."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * inv_freq / (2 * math.pi)  # in the original context
    keep = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - keep) * inv_freq / scaling["factor"] + keep * inv_freq, 1.0


def _yarn(inv_freq: Frequencies, scaling: Mapping[str, Any], theta: float, context: int) -> Scaled:
    """Interpolate pairs that turn less than `beta_slow` times, keep those above `beta_fast` (arXiv:2309.00071)."""
    original = scaling.get("original_max_position_embeddings", context)
    width = 2 * len(inv_freq)

    def channel(turns: float) -> float:  # where a pair turns so often in the original context
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = channel(scaling.get("beta_fast", 32)), channel(scaling.get("beta_slow", 1))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    # Published models were trained with this ramp: it counts pairs against bounds in channels.
    slow = np.clip((np.arange(len(inv_freq)) - low) / (high - low if high != low else 0.001), 0, 1)
    return inv_freq / scaling["factor"] * slow + inv_freq * (1 - slow), _attention_factor(scaling)


def _attention_factor(scaling: Mapping[str, Any]) -> float:
    """Return YaRN's factor of cos and sin: given, or from mscale / mscale_all_dim, or 0.1 ln(factor) + 1."""
    if "attention_factor" in scaling:
        return float(scaling["attention_factor"])

    def temperature(mscale: float) -> float:
        return 0.1 * mscale * math.log(scaling["factor"]) + 1.0 if scaling["factor"] > 1 else 1.0

    if "mscale" in scaling and "mscale_all_dim" in scaling:
        return temperature(scaling["mscale"]) / temperature(scaling["mscale_all_dim"])
    return temperature(1.0)


_KINDS: dict[str, Scaling] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "factors": _factors,
}
