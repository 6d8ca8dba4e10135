"""Model files: find and fetch them (`resolve`, `pull`), open them (`open_checkpoint`).

A checkpoint speaks one language whatever it came from: the keys of a Hugging Face config, Hugging Face tensor
names, and tensors as the file stores them. Nothing here computes; nothing here trusts a file.
"""

from outpace.weights.catalog import DEFAULT, KnownModel, cache_folder, known_models, pull, resolve
from outpace.weights.checkpoint import Checkpoint, open_checkpoint

__all__ = [
    "DEFAULT",
    "Checkpoint",
    "KnownModel",
    "cache_folder",
    "known_models",
    "open_checkpoint",
    "pull",
    "resolve",
]
