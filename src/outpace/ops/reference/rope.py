"""The rotary table: cos and sin of position times frequency, made as sequences grow into it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Floats = NDArray[Any]

_STRETCH = 1024  # positions that are made at once


class RopeTable:
    """cos and sin for the positions [0, context): angles in float64, results rounded to the working precision.

    Rows are made when a position is first asked for: contexts of a million tokens are announced more often than used.
    """

    def __init__(self, inv_freq: NDArray[np.float64], scale: float, context: int, dtype: DTypeLike) -> None:
        self.context = context
        self._inv_freq, self._scale = inv_freq, np.where(inv_freq == 0, 1.0, scale)  # still pairs are left alone
        self._cos = np.empty((0, len(inv_freq)), dtype)
        self._sin = np.empty((0, len(inv_freq)), dtype)

    def rotate(self, x_THK: Floats, positions: NDArray[np.int64]) -> Floats:
        """Return x with the pair (i, i + K / 2) of each head turned by the angle of its token's position."""
        self._reach(int(positions.max()))
        cos, sin = self._cos[positions][:, None], self._sin[positions][:, None]
        half = x_THK.shape[-1] // 2
        a, b = x_THK[..., :half], x_THK[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def _reach(self, position: int) -> None:
        """Make the rows up to `position`. Each stretch is made alone, so a row does not depend on what came first."""
        assert position < self.context, f"position {position} is past the context, {self.context}: refused upstream"
        while len(self._cos) <= position:
            stretch = np.arange(len(self._cos), len(self._cos) + _STRETCH, dtype=np.float64)
            angles = stretch[:, None] * self._inv_freq
            cos, sin = np.cos(angles) * self._scale, np.sin(angles) * self._scale
            self._cos = np.concatenate([self._cos, cos.astype(self._cos.dtype)])
            self._sin = np.concatenate([self._sin, sin.astype(self._sin.dtype)])
