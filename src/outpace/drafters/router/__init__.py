"""When drafting pays: what passes cost here, whose guesses come true, and the router that decides by both."""

from outpace.drafters.router.auto import Auto
from outpace.drafters.router.experience import Experience

__all__ = ["Auto", "Experience"]
