"""Published drafters: the layouts that others write, in the words of our networks (`docs/published-drafters.md`)."""

from outpace.drafters.layouts.open import open_trained

__all__ = ["open_trained"]
