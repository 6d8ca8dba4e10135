"""When drafting pays: what passes cost here, whose guesses come true, and the router that decides by both."""

from outpace.tune.auto import Auto
from outpace.tune.experience import Experience

__all__ = ["Auto", "Experience"]
