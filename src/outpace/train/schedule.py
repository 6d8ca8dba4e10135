"""The learning rate over a run: a factor of what each group of parameters learns with."""

from __future__ import annotations

_CONSTANT = 0.5  # of the run
_LAST = 0.03


def factor(step: int, done: float, warmup_steps: int) -> float:
    """Return the factor of a step, counted from 0: linear warm-up, constant to half, then linear to 3 %.

    done: the fraction of the run that is over, in [0, 1].
    """
    warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    fall = 1.0 if done < _CONSTANT else max(_LAST, 1 - (done - _CONSTANT) / (1 - _CONSTANT))
    return warm * fall
