"""Model files: find and fetch them (`resolve`, `pull`), read them (`read_model`).

Nothing here computes, nothing here knows a network, and nothing here trusts a file.
"""

from outpace.weights.catalog import DEFAULT, KnownModel, cache_folder, known_models, pull, resolve
from outpace.weights.model_file import FolderFiles, read_model

__all__ = [
    "DEFAULT",
    "FolderFiles",
    "KnownModel",
    "cache_folder",
    "known_models",
    "pull",
    "read_model",
    "resolve",
]
