"""LLaDA (arXiv:2502.09992): Llama's network that fills masks, every token seeing the whole text in both directions."""

from __future__ import annotations

from dataclasses import replace

from outpace.models import gguf
from outpace.models.architecture import Architecture
from outpace.models.config import Config, ModelConfig
from outpace.models.keys import decoder, no_windows
from outpace.models.tensors import Places, attention, gated_mlp, pre_norms
from outpace.types import MaskFilling
from outpace.weights.values import Values

_KEYS = {  # ours -> those of a folder's config.json
    **{"hidden_size": "d_model", "intermediate_size": "mlp_hidden_size", "num_hidden_layers": "n_layers"},
    **{"num_attention_heads": "n_heads", "num_key_value_heads": "n_kv_heads", "hidden_act": "activation_type"},
    **{"max_position_embeddings": "max_sequence_length", "tie_word_embeddings": "weight_tying"},
    "attention_bias": "include_qkv_bias",
}
_NAMES = {  # parts of our tensors' names -> those of a folder's
    **{"model.embed_tokens.": "model.transformer.wte.", "model.norm.": "model.transformer.ln_f."},
    **{"lm_head.": "model.transformer.ff_out.", "model.layers.": "model.transformer.blocks."},
    **{"input_layernorm.": "attn_norm.", "post_attention_layernorm.": "ff_norm.", "self_attn.o_proj.": "attn_out."},
    **{"self_attn.": "", "mlp.gate_proj.": "ff_proj.", "mlp.up_proj.": "up_proj.", "mlp.down_proj.": "ff_out."},
}
_ONLY = {"block_type": "llama", "layer_norm_type": "rms", "rope": True, "alibi": False, "include_bias": False}
_OFF = ("attention_layer_norm", "input_emb_norm", "scale_logits", "clip_qkv", "multi_query_attention")


def config(source: Values) -> Config:
    """Return the checked config."""
    for key, allowed in _ONLY.items():
        source.only(key, allowed, null=key == "include_bias")
    for key in _OFF:
        source.only(key, False, null=True)
    usual = decoder(source, context=4096, eps=1e-5) | no_windows(source)
    source.only("embedding_size", usual["vocab_size"], null=True)
    bias = source.flag("attention_bias", absent=False, null=False)
    return usual | {"attention_bias": bias, "mask_token_id": source.count("mask_token_id", usual["vocab_size"] - 1)}


def sizes(config: Config) -> ModelConfig:
    """Return the network's numbers."""
    return replace(ModelConfig.from_hf(config), output_bias=False)


def layer(sizes: ModelConfig) -> Places:
    """Return the tensors of a layer."""
    return pre_norms(sizes) | attention(sizes) | gated_mlp(sizes)


def filling(config: Config) -> MaskFilling:
    """Return how it fills masks: blocks of 32 tokens, the surest first."""
    return MaskFilling(config["mask_token_id"], block=32, shift=0, sees_all=True)


ARCHITECTURE = Architecture(
    "llada", "llada", config, layer, sizes,
    filling=filling, folder_keys=_KEYS, folder_names=_NAMES, gguf_config=gguf.mask_token, gguf_pairs=True,
)  # fmt: skip
