"""What a published drafter's config says of its decoder layers, which are those of a Llama or a Qwen3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from outpace.models import normalise
from outpace.weights.values import Values

_TYPES = {"llama": False, "mistral": False, "qwen2": False, "qwen3": True}  # whether its heads are normed
# What training code writes along with a config, and nothing of the network depends on.
_IGNORED = ("attention_bias", "tie_word_embeddings", "layer_types", "sliding_window", "use_sliding_window")


@dataclass(frozen=True, slots=True)
class Decoder:
    """The sizes of a drafter's layers, checked.

    has_biases: of queries, keys, values and of attention's output. window: of the first layer.
    """

    vocab_size: int
    width: int
    feed_forward_width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    eps: float
    context: int
    rope_theta: float
    rope_scaling: dict[str, Any] | None
    has_biases: bool
    has_head_norms: bool
    windows: tuple[int | None, ...]

    @classmethod
    def read(cls, raw: Mapping[str, Any], where: str, names: Mapping[str, str] | None = None) -> Decoder:
        """Return what a config in Hugging Face's words says; raises WeightsError with the key, as `names` calls it."""
        source = Values(raw, where, names or {})
        model_type = source.text("model_type")
        if model_type not in _TYPES:
            raise source.error("model_type", f"is {model_type!r}, supported are {', '.join(_TYPES)}")
        source.only("mlp_bias", False, null=True)
        source.only("partial_rotary_factor", 1.0)
        # A drafter's layer is a Llama's, or a Qwen3's with its norms, whatever else these types stand for.
        kind = "qwen3" if _TYPES[model_type] else "llama"
        config = normalise({key: raw[key] for key in raw if key not in _IGNORED} | {"model_type": kind}, where, names)
        return cls(
            vocab_size=config["vocab_size"],
            width=config["hidden_size"],
            feed_forward_width=config["intermediate_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            num_kv_heads=config["num_key_value_heads"],
            head_width=config["head_dim"],
            eps=config["rms_norm_eps"],
            context=config["max_position_embeddings"],
            rope_theta=config["rope_theta"],
            rope_scaling=config["rope_scaling"],
            has_biases=source.flag("attention_bias", absent=False, null=False),
            has_head_norms=_TYPES[model_type],
            windows=_windows(source, config["num_hidden_layers"]),
        )

    def entries(self) -> dict[str, Any]:
        """Return them as a drafter's entries, where these are the same for all kinds."""
        return {
            **{"width": self.width, "num_heads": self.num_heads, "num_kv_heads": self.num_kv_heads},
            **{"head_width": self.head_width, "eps": self.eps, "context": self.context},
            **{"rope_theta": self.rope_theta, "rope_scaling": self.rope_scaling},
            **{"biases": self.has_biases, "head_norms": self.has_head_norms},
        }


def _windows(source: Values, num_layers: int) -> tuple[int | None, ...]:
    """Return each layer's window: `sliding_window` where `layer_types` says so, as speculators and DFlash read it."""
    kinds = source.items("layer_types") or ["full_attention"] * num_layers
    if len(kinds) != num_layers or any(kind not in ("full_attention", "sliding_attention") for kind in kinds):
        raise source.error("layer_types", f"must be a list of {num_layers} of full_attention, sliding_attention")
    if "sliding_attention" not in kinds or source.is_null("sliding_window"):
        return (None,) * num_layers
    window = source.count("sliding_window", 1 << 31)
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
