"""Metadata of networks that cannot be said are refused; that all others are llama.cpp's: tests/parity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from outpace.errors import WeightsError
from outpace.models.checkpoint import open_checkpoint
from outpace.models.to_gguf import gguf_network
from tests.folder import make_folder

UNSAYABLE: dict[str, tuple[str, dict[str, Any], str]] = {
    "windows that its files have no key for": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
        "windows",
    ),
    "other layers without rope": ("smollm3", {"no_rope_layers": [0, 1]}, "rotations"),
    "a scale that its files do not have": (
        "gemma3_text",
        {"query_pre_attn_scalar": 24.0, "head_dim": 16, "hidden_activation": "gelu_pytorch_tanh"},
        "attention_scale",
    ),
    "a network that fills masks": ("Dream", {"mask_token_id": 3}, "mask_token_id is missing"),
    "weights of experts that do not add up to 1": ("qwen3_moe", {"norm_topk_prob": False}, "experts is"),
    "experts in every other layer": ("qwen3_moe", {"norm_topk_prob": True, "decoder_sparse_step": 2}, "experts is"),
}


@pytest.mark.parametrize("case", UNSAYABLE)
def test_what_a_file_cannot_say_is_refused(tmp_path: Path, case: str) -> None:
    model_type, overrides, message = UNSAYABLE[case]
    folder = make_folder(tmp_path, model_type, **overrides)
    with pytest.raises(WeightsError, match=message):
        gguf_network(open_checkpoint(folder))


def test_a_plain_model_has_the_entries_of_its_config(tmp_path: Path) -> None:
    metadata, tensors = gguf_network(open_checkpoint(make_folder(tmp_path)))
    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.embedding_length"] == 48
    assert metadata["llama.rope.dimension_count"] == 12
    assert [tensor.name for tensor in tensors[:2]] == ["token_embd.weight", "blk.0.attn_norm.weight"]
    assert {tensor.format for tensor in tensors} == {"F32"}
