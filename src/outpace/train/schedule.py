"""How far a run is, and the learning rate over it: a factor of what each group of parameters learns with."""

from __future__ import annotations

_CONSTANT = 0.5  # of the run
_LAST = 0.03


def fraction(steps: int | None, budget_s: float | None, step: int, seconds: float) -> float:
    """Return how much of a run is over after so many steps and seconds, in [0, 1].

    steps, budget_s: its end; with both, the first that is reached ends it, and the steps say how far it is.
    """
    by_time = seconds / budget_s if budget_s else 0.0
    if steps is None:
        return min(by_time, 1.0)
    return 1.0 if by_time >= 1 else min(step / steps, 1.0)


def factor(step: int, done: float, warmup_steps: int) -> float:
    """Return the factor of a step, counted from 0: linear warm-up, constant to half, then linear to 3 %.

    done: the fraction of the run that is over, in [0, 1].
    """
    warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    fall = 1.0 if done < _CONSTANT else max(_LAST, 1 - (done - _CONSTANT) / (1 - _CONSTANT))
    return warm * fall
