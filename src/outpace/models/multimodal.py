"""The text network of a multimodal folder: its part of config.json, and its tensors under the names of text folders.

The layout is LLaVA's, which Gemma 3, Mistral 3 and others keep: `text_config` inside config.json, the text network's
tensors under `language_model.`, those of images under `vision_tower.` and `multi_modal_projector.`. Text alone runs
through the text network and nothing else, so its logits are those of the whole model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from outpace.errors import WeightsError
from outpace.models.architecture import architectures
from outpace.models.config import Config
from outpace.weights.values import shown

T = TypeVar("T")

_TEXT = "text_config"
_OUTSIDE = ("quantization_config", "eos_token_id")  # said of the whole
_PREFIXES = {  # of the text network's tensors, in older and in newer folders -> in folders of text
    "language_model.model.": "model.",
    "model.language_model.": "model.",
    "language_model.lm_head.": "lm_head.",
}
_IMAGES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


def text_config(raw: Mapping[str, Any], where: str) -> Config | None:
    """Return what a multimodal folder's config.json says of its text network; None: it is of text alone.

    Raises WeightsError for a text network that there is no code for.
    """
    text = raw.get(_TEXT)
    if text is None or raw.get("model_type") in architectures():
        return None
    if not isinstance(text, Mapping):
        raise WeightsError(f"{where}: {_TEXT} must be an object, is {shown(text)}")
    stated = text.get("model_type", f"{raw.get('model_type')}_text")
    own = architectures().get(stated) if isinstance(stated, str) else None
    if own is None:
        raise WeightsError(
            f"{where}: {_TEXT}: model_type is {shown(stated)}, supported are {', '.join(architectures())}"
        )
    outside = {key: raw[key] for key in _OUTSIDE if raw.get(key) is not None}
    return {**own.usual, **text, **outside, "model_type": stated}


def text_tensors(found: Mapping[str, T], where: str) -> dict[str, T]:
    """Return a multimodal folder's tensors without those of images, which are not read; the others keep their names."""
    kept = {name: tensor for name, tensor in found.items() if not name.startswith(_IMAGES)}
    if not any(name.startswith(tuple(_PREFIXES)) for name in kept):
        raise WeightsError(f"{where}: no tensor begins with {' or '.join(_PREFIXES)}: another layout, not supported")
    return kept


def text_name(name: str) -> str:
    """Return what folders of text call a tensor of the text network."""
    for prefix, ours in _PREFIXES.items():
        if name.startswith(prefix):
            return ours + name.removeprefix(prefix)
    return name


def is_tied(raw: Mapping[str, Any], config: Mapping[str, Any], has_head: bool) -> bool:
    """Whether the text network's embedding is its output matrix; config: its own, checked.

    transformers asks the one or the other config, by version, and saves no key that has its default (of the whole:
    true). So a folder without an output matrix is tied unless both say no.
    """
    return bool(config["tie_word_embeddings"] or (not has_head and raw.get("tie_word_embeddings", True) is True))
