"""Prompts to measure and to certify with: a built-in set, or a file of the user's."""

from outpace.measure.prompts.task_prompts import TaskPrompt, builtin, load_prompts, parse, ranks, spread, varied

__all__ = ["TaskPrompt", "builtin", "load_prompts", "parse", "ranks", "spread", "varied"]
