"""The packages that training needs and the engine does not."""

from __future__ import annotations

import importlib.util

from outpace.errors import UsageError

_PACKAGES = ("torch", "gguf")


def require() -> None:
    """Raise UsageError, with the cure, if a package of the extra `outpace[train]` is missing."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"training needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            "pip install 'outpace[train]'"
        )
