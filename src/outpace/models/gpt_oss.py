"""gpt-oss: experts with biases in every layer, attention sinks, a window in every other layer, biases, YaRN."""

from __future__ import annotations

from dataclasses import replace

from outpace.errors import WeightsError
from outpace.models import gguf
from outpace.models.architecture import Architecture
from outpace.models.config import Config, ExpertSizes, ModelConfig
from outpace.models.experts import biased_experts
from outpace.models.keys import biases, decoder, experts, windows_by_pattern
from outpace.models.tensors import Places, Tensor, attention
from outpace.weights.gguf import GGUFFile
from outpace.weights.values import Values

COUNT, CHOSEN, WIDTH, PACKED = "num_local_experts", "num_experts_per_tok", "intermediate_size", "quantization_config"
KEYS = {  # our key -> the metadata key of GGUF files
    **{COUNT: "expert_count", CHOSEN: "expert_used_count", WIDTH: "expert_feed_forward_length"},
    "sliding_window": "attention.sliding_window",
}
ROPE = {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096}


def config(source: Values) -> Config:
    """Return the checked config."""
    source.only("swiglu_limit", 7.0)
    is_silent = source.raw.keys().isdisjoint(("rope_scaling", "rope_parameters"))
    full = replace(source, raw={**source.raw, "rope_scaling": ROPE}) if is_silent else source
    usual = decoder(full, context=131072, kv_heads=8, head_width=64, eps=1e-5, theta=150000.0)
    own = experts(source, COUNT, 128, CHOSEN, 4)
    packed = {PACKED: {"quant_method": "mxfp4"}} if source.is_given(PACKED) else {}
    if packed and (usual["hidden_size"] % 32 or usual[WIDTH] % 32):
        raise source.error(PACKED, "is mxfp4, but hidden_size and intermediate_size are not multiples of 32")
    return usual | windows_by_pattern(source, 2, 128) | biases(source, mlp=False, attention=True) | own | packed


def sizes(config: Config) -> ModelConfig:
    """Return the network's numbers."""
    layers = frozenset(range(config["num_hidden_layers"]))
    own = ExpertSizes(config[COUNT], config[CHOSEN], config[WIDTH], True, layers, PACKED in config)
    return replace(ModelConfig.from_hf(config), activation="clamped_swiglu", experts=own)


def layer(sizes: ModelConfig) -> Places:
    """Return the tensors of a layer."""
    own = {
        "attn_norm": Tensor("input_layernorm.weight", "attn_norm.weight", (sizes.width,)),
        "mlp_norm": Tensor("post_attention_layernorm.weight", "post_attention_norm.weight", (sizes.width,)),
        "sinks": Tensor("self_attn.sinks", "attn_sinks.weight", (sizes.num_heads,)),
    }
    return own | attention(sizes) | biased_experts(sizes)


def from_gguf(file: GGUFFile, config: Config) -> Config:
    """Return what files say in other ways, or not at all: the ramp of YaRN is not cut to whole channels.

    (llama.cpp cuts it; the published configurations say `"truncate": false`.)
    """
    theta = config.get("rope_theta")
    if file.metadata.get("gpt-oss.rope.freq_base_swa", theta) != theta:
        raise WeightsError(f"{file.path}: metadata gpt-oss.rope.freq_base_swa is not rope.freq_base: not supported")
    scaling = config["rope_scaling"]
    exact = {"rope_scaling": scaling | {"truncate": False}} if scaling and scaling["rope_type"] == "yarn" else {}
    return {**exact, **gguf.biases(file, config), **gguf.layer_types(file, "gpt-oss")}


ARCHITECTURE = Architecture(
    "gpt_oss", "gpt-oss", config, layer, sizes, gguf_keys=KEYS, gguf_config=from_gguf, quant_method="mxfp4"
)
