"""What a network needs to know of its config: sizes, in our words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from outpace.models.rope import frequencies


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The sizes of a Llama-like network."""

    model_type: str
    vocab_size: int  # V
    width: int  # D
    feed_forward_width: int  # F
    num_layers: int
    num_heads: int  # H
    num_kv_heads: int  # G
    head_width: int  # K
    eps: float  # of the RMS norms
    context: int  # most positions
    windows: tuple[int | None, ...]  # of each layer: a token sees itself and window - 1 earlier positions
    inv_freq: tuple[float, ...]  # rotary angle per position, of each pair of a head's channels
    rope_scale: float  # factor of cos and sin
    tied: bool  # the output matrix is the embedding matrix

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Return the sizes from a config in Hugging Face's words, as `outpace.weights` checked and completed it."""
        width, context = config["head_dim"], config["max_position_embeddings"]
        inv_freq, rope_scale = frequencies(config["rope_theta"], width, config["rope_scaling"] or {}, context)
        windows = {"full_attention": None, "sliding_attention": config["sliding_window"]}
        return cls(
            model_type=config["model_type"],
            vocab_size=config["vocab_size"],
            width=config["hidden_size"],
            feed_forward_width=config["intermediate_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            num_kv_heads=config["num_key_value_heads"],
            head_width=width,
            eps=config["rms_norm_eps"],
            context=context,
            windows=tuple(windows[kind] for kind in config["layer_types"]),
            inv_freq=tuple(inv_freq.tolist()),
            rope_scale=rope_scale,
            tied=config["tie_word_embeddings"],
        )

    @property
    def max_window(self) -> int | None:
        """The largest window, itself included, if every layer has one: older positions are never read again."""
        windows = [window for window in self.windows if window is not None]
        return max(windows) if len(windows) == len(self.windows) else None
