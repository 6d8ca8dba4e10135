"""Published drafters: the layouts that others write, in the words of our networks (`docs/published-drafters.md` lists them)."""

from outpace.drafters.layouts.open import open_trained

__all__ = ["open_trained"]
