"""Networks, written over ops: one file per `model_type`, and the table that names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from outpace.errors import WeightsError
from outpace.models import llama, mistral, qwen2, qwen3
from outpace.models.config import ModelConfig
from outpace.models.transformer import Transformer
from outpace.ops.protocol import Ops
from outpace.types import RawTensor

__all__ = ["ModelConfig", "Transformer", "build"]

_ARCHITECTURES: dict[str, Callable[[Mapping[str, Any], Mapping[str, RawTensor], Ops], Transformer]] = {
    "llama": llama.build,
    "mistral": mistral.build,
    "qwen2": qwen2.build,
    "qwen3": qwen3.build,
}


def build(config: Mapping[str, Any], tensors: Mapping[str, RawTensor], ops: Ops) -> Transformer:
    """Return the network that `config` describes, with its tensors packed by `ops`.

    config and tensors: in Hugging Face's words, as `outpace.weights` checked and completed them. Raises WeightsError
    for a kind of network that there is no code for, and for tensors that do not fit it.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _ARCHITECTURES:
        raise WeightsError(f"model_type {model_type!r} is not supported; supported are {', '.join(_ARCHITECTURES)}")
    return _ARCHITECTURES[model_type](config, tensors, ops)
