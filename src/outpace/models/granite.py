"""Granite: Llama with four multipliers: of the embedding, of attention's products, of what a layer adds, of logits."""

from __future__ import annotations

from dataclasses import replace

from outpace.models import gguf
from outpace.models.architecture import Architecture
from outpace.models.config import Config, ModelConfig
from outpace.models.keys import biases, decoder, no_windows
from outpace.models.tensors import Places, attention, gated_mlp, pre_norms
from outpace.weights.values import Values

MULTIPLIERS = {  # our key -> the metadata key of GGUF files
    "embedding_multiplier": "embedding_scale",
    "attention_multiplier": "attention.scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",  # what logits are divided by
}


def config(source: Values) -> Config:
    """Return the checked config."""
    multipliers = {key: source.number(key, 1e6, absent=1.0) for key in MULTIPLIERS}
    return (
        decoder(source, context=2048, nulls=["num_key_value_heads"])
        | no_windows(source)
        | biases(source, mlp=True)
        | multipliers
    )


def sizes(config: Config) -> ModelConfig:
    """Return the network's numbers."""
    return replace(
        ModelConfig.from_hf(config),
        embedding_scale=config["embedding_multiplier"],
        attention_scale=config["attention_multiplier"],
        residual_scale=config["residual_multiplier"],
        logit_scale=1 / config["logits_scaling"],
    )


def layer(sizes: ModelConfig) -> Places:
    """Return the tensors of a layer."""
    return pre_norms(sizes) | attention(sizes) | gated_mlp(sizes)


ARCHITECTURE = Architecture(
    "granite",
    "granite",
    config,
    layer,
    sizes,
    gguf_keys=MULTIPLIERS,
    gguf_config=gguf.biases,
    gguf_pairs=True,
    usual_eos=2,
)
