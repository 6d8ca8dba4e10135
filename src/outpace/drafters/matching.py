"""How far a match is trusted: the confidence that drafters which look for earlier text give their guesses."""

from __future__ import annotations


def trust(match: int) -> float:
    """Return the estimated chance that text which agreed for `match` tokens agrees for one more.

    m / (m + 1): the m agreements counted as successes, and one failure put beside them (the mean of the
    beta distribution after m successes, begun with one failure). Never 1, since every repetition ends somewhere.
    """
    return match / (match + 1)
