from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from outpace.models import open_checkpoint

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 80,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama tied": ("Llama", {"tie_word_embeddings": True}),
    "llama3": (
        "Llama",
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "mistral": ("Mistral", {"sliding_window": 32}),
    "mistral without window": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen2 yarn": ("Qwen2", {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}),
    "qwen2 windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"rope_theta": 1e6}),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shard", ["5GB", "40KB"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_that_transformers_saves_is_read_as_it_was(tmp_path: Path, name: str, shard: str, dtype: str) -> None:
    kind, options = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**SIZES, **options, eos_token_id=[2, 3])
    model = getattr(transformers, f"{kind}ForCausalLM")(config).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors").exists() == (shard == "5GB")

    checkpoint = open_checkpoint(tmp_path)
    theirs = dict(model.named_parameters())
    assert checkpoint.tensors.keys() == theirs.keys()
    for tensor_name, tensor in checkpoint.tensors.items():
        expected = theirs[tensor_name].detach()
        assert tensor.shape == tuple(expected.shape)
        assert tensor.data.tobytes() == expected.contiguous().view(torch.uint8).numpy().tobytes(), tensor_name

    ours = checkpoint.config
    for key in [*SIZES, "rms_norm_eps", "rope_theta", "tie_word_embeddings"]:
        assert ours[key] == getattr(config, key), key
    scaling = {key: value for key, value in (getattr(config, "rope_scaling", None) or {}).items() if key != "type"}
    assert (ours["rope_scaling"] or {}) == scaling
    assert checkpoint.eos_ids == {2, 3}
    layers = model.model.layers
    windows = [getattr(layer.self_attn, "sliding_window", None) for layer in layers]
    if kind == "Mistral":  # its layers share the config's
        windows = [config.sliding_window] * 3
    assert [ours["sliding_window"] if t == "sliding_attention" else None for t in ours["layer_types"]] == windows
