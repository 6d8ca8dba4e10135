"""Who guesses: drafters that need no model are at hand here; `draft_model` is in its module."""

from outpace.drafters.combined import Combined
from outpace.drafters.jacobi import Jacobi
from outpace.drafters.lookahead import Lookahead
from outpace.drafters.ngram import NGram
from outpace.drafters.prediction import Prediction
from outpace.drafters.suffix import Suffix

__all__ = ["Combined", "Jacobi", "Lookahead", "NGram", "Prediction", "Suffix"]
