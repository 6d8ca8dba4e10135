"""How good a text is, in numbers that need no judge: small tasks with one right answer, perplexity, repetition."""
