"""SmolLM3: Llama, with every fourth layer (or as listed) without rope."""

from __future__ import annotations

from dataclasses import replace

from outpace.models import gguf
from outpace.models.architecture import Architecture
from outpace.models.config import Config, ModelConfig, Rotation
from outpace.models.keys import biases, decoder, listed, no_windows
from outpace.models.tensors import Places, attention, gated_mlp, pre_norms
from outpace.weights.values import Values


def config(source: Values) -> Config:
    """Return the checked config; windows are not supported."""
    source.only("use_sliding_window", False, null=True)
    usual = decoder(source, context=32768, kv_heads=4, nulls=["num_key_value_heads"], theta=2e6, tied=True)
    num_layers = usual["num_hidden_layers"]
    if source.is_given("layer_types"):
        listed(source, num_layers, None)
    return usual | no_windows(source) | biases(source, mlp=True) | {"no_rope_layers": _turning(source, num_layers)}


def _turning(source: Values, num_layers: int) -> list[int]:
    """Return 1 for each layer with rope, 0 for each without."""
    turning = source.items("no_rope_layers")
    if not turning:
        interval = source.count("no_rope_layer_interval", 1 << 10, absent=4)
        turning = [int((i + 1) % interval != 0) for i in range(num_layers)]
    if len(turning) != num_layers or not all(type(turns) is int and turns in (0, 1) for turns in turning):
        raise source.error("no_rope_layers", f"must be a list of {num_layers} of 0 (without rope) and 1")
    return turning


def sizes(config: Config) -> ModelConfig:
    """Return the network's numbers."""
    plain = ModelConfig.from_hf(config)
    turning = Rotation(plain.inv_freq, plain.rope_scale)
    still = Rotation((0.0,) * len(plain.inv_freq), 1.0)
    return replace(plain, rotations=tuple(turning if turns else still for turns in config["no_rope_layers"]))


def layer(sizes: ModelConfig) -> Places:
    """Return the tensors of a layer."""
    return pre_norms(sizes) | attention(sizes) | gated_mlp(sizes)


ARCHITECTURE = Architecture("smollm3", "smollm3", config, layer, sizes, gguf_config=gguf.biases, gguf_pairs=True)
