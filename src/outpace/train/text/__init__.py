"""What is trained on: prompts, the target's answers to them, given texts, and how they lie on disk."""
