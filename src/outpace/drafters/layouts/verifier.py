"""For whom a drafter in the layout of speculators was made: its `speculators_config.verifier`."""

from __future__ import annotations

from outpace.weights.values import Values

_SUFFIXES = ("ForCausalLM", "ForConditionalGeneration")
UNNAMED = "a model that its files do not name"


def verifier(source: Values) -> tuple[str, str | None]:
    """Return the target's name, and its model type as its class is called; None if that is not said."""
    stated = source.object("speculators_config").object("verifier")
    architectures = [name for name in stated.items("architectures") if isinstance(name, str)]
    return stated.text("name_or_path") or UNNAMED, _model_type(architectures[0]) if architectures else None


def _model_type(architecture: str) -> str:
    for suffix in _SUFFIXES:
        architecture = architecture.removesuffix(suffix)
    return architecture.lower()
