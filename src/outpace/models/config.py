"""What a network needs to know of its config: sizes and numbers, in our words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from outpace.models.rope import frequencies
from outpace.ops.layers import Activation, QueryGrowth

Config = dict[str, Any]  # a checked config, in Hugging Face's words (`outpace.models.keys`)


class Rotation(NamedTuple):
    """How queries and keys turn with their position."""

    inv_freq: tuple[float, ...]  # angle per position of each of a head's K / 2 pairs; 0: it does not turn
    scale: float  # factor of cos and sin of those that turn


class ExpertSizes(NamedTuple):
    """The experts of a network (`outpace.ops.layers.Experts`)."""

    num_experts: int  # E
    num_chosen: int  # for each token
    width: int  # F of each
    is_normalised: bool  # whether the weights of the chosen add up to 1
    layers: frozenset[int]  # those that have them; the others have one MLP
    is_packed: bool = False  # in a folder, as MXFP4: blocks of codes and their scales apart


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The sizes of a decoder network, and the numbers of the parts that it is composed of."""

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
    rotary_width: int  # channels of a head that turn, the first ones of a stored head
    inv_freq: tuple[float, ...]  # see Rotation
    rope_scale: float
    tied: bool  # the output matrix is the embedding matrix
    qkv_bias: bool = False
    output_bias: bool = False  # of attention
    mlp_bias: bool = False
    rotations: tuple[Rotation, ...] = ()  # of each layer, where they differ; else inv_freq and rope_scale are all's
    activation: Activation = "silu"  # of the gated MLP
    attention_scale: float | None = None  # of the products of queries and keys; None: 1 / sqrt(K)
    query_growth: QueryGrowth | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0  # of what each half of a layer adds
    logit_scale: float = 1.0
    logit_cap: float | None = None  # cap * tanh(logits / cap)
    experts: ExpertSizes | None = None

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Return the sizes of a checked config in Hugging Face's words."""
        width, context = config["head_dim"], config["max_position_embeddings"]
        rotary_width = int(width * config.get("partial_rotary_factor", 1.0))
        rotation = rotate(config["rope_theta"], config["rope_scaling"], width, rotary_width, context)
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
            rotary_width=rotary_width,
            inv_freq=rotation.inv_freq,
            rope_scale=rotation.scale,
            tied=config["tie_word_embeddings"],
            qkv_bias=config["attention_bias"],
            output_bias=config["attention_bias"],
            mlp_bias=config.get("mlp_bias", False),
        )

    @property
    def max_window(self) -> int | None:
        """The largest window, itself included, if every layer has one: older positions are never read again."""
        windows = [window for window in self.windows if window is not None]
        return max(windows) if len(windows) == len(self.windows) else None

    def with_near_rope(self, theta: float) -> ModelConfig:
        """Return it with a rope of this theta, never scaled, in the layers that have a window."""
        far = Rotation(self.inv_freq, self.rope_scale)
        near = rotate(theta, None, self.head_width, self.rotary_width, self.context)
        return replace(self, rotations=tuple(far if window is None else near for window in self.windows))

    def rotation(self, layer: int) -> Rotation:
        """Return how a layer's queries and keys turn."""
        return self.rotations[layer] if self.rotations else Rotation(self.inv_freq, self.rope_scale)


def rotate(
    theta: float, scaling: Mapping[str, Any] | None, head_width: int, rotary_width: int, context: int
) -> Rotation:
    """Return the rotation of heads whose first `rotary_width` channels turn."""
    inv_freq, scale = frequencies(theta, rotary_width, scaling or {}, context)
    still = (0.0,) * ((head_width - rotary_width) // 2)
    return Rotation((*inv_freq.tolist(), *still), scale)
