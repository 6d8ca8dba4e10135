"""Text through multimodal folders, as transformers saves them: its logits, from the text network alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from outpace import models
from outpace.api.preflight import inspect_model
from outpace.models import open_checkpoint
from outpace.models.to_gguf import gguf_network
from outpace.ops.reference import ReferenceOps
from tests.networks import NETWORKS
from tests.parity.oracle import is_there
from tests.parity.test_models_parity import ours
from tests.tiny import tiny_config

VISION = {
    **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"image_size": 28, "patch_size": 14},
}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gemma3": (
        "Gemma3",
        tiny_config(*NETWORKS["gemma3_text"][:1], **NETWORKS["gemma3_text"][1]),
        {"mm_tokens_per_image": 1},
    ),
    "mistral3": ("Mistral3", tiny_config("mistral", head_dim=12), {}),
    "mistral3, tied": ("Mistral3", tiny_config("mistral", head_dim=12, tie_word_embeddings=True), {}),
    "mistral3, ministral3": ("Mistral3", tiny_config(*NETWORKS["ministral3"][:1], **NETWORKS["ministral3"][1]), {}),
}


def network(name: str) -> Any:
    """Return a random multimodal network of transformers."""
    kind, text, options = CASES[name]
    if not is_there(text["model_type"]):
        pytest.skip(f"transformers {transformers.__version__} has no {text['model_type']}")
    vision = VISION | ({"head_dim": 8, "model_type": "pixtral"} if kind == "Mistral3" else {})
    config = getattr(transformers, f"{kind}Config")(
        text_config=text, vision_config=vision, image_token_index=96, pad_token_id=0, **options
    )
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    made = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for parameter in made.model.language_model.parameters():
            parameter.normal_(0, 0.5 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5)
        if not text["tie_word_embeddings"]:
            made.lm_head.weight.normal_(0, 0.2)
    return made


def with_new_names(folder: Path) -> None:
    """Rename a folder's tensors as transformers has them in memory since 4.52."""
    path = folder / "model.safetensors"
    new = {"language_model.model.": "model.language_model.", "language_model.lm_head.": "lm_head."}
    new |= {part: f"model.{part}" for part in ("vision_tower.", "multi_modal_projector.")}
    tensors = load_file(path)
    for old, name in new.items():
        tensors = {key.replace(old, name, 1) if key.startswith(old) else key: x for key, x in tensors.items()}
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize("saved", ["whole", "sharded", "new names"])
@pytest.mark.parametrize("name", CASES)
def test_logits_of_text_are_those_of_the_whole_network(tmp_path: Path, name: str, saved: str) -> None:
    theirs = network(name)
    theirs.save_pretrained(tmp_path, max_shard_size="30kB" if saved == "sharded" else "1GB")
    if saved == "new names":
        with_new_names(tmp_path)
    assert ((tmp_path / "model.safetensors.index.json").exists()) == (saved == "sharded")
    checkpoint, ops = open_checkpoint(tmp_path), ReferenceOps()
    assert checkpoint.is_part
    assert not any("vision" in tensor for tensor in checkpoint.tensors.stored)
    tokens = np.random.default_rng(0).integers(1, 96, 120).tolist()
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor([tokens])).logits[0].numpy()
    found = ours(models.build(checkpoint.config, checkpoint.tensors, ops), ops, tokens)
    assert np.abs(expected).max() > 1
    assert np.abs(found - expected).max() < 1e-4


def test_inspection_says_that_images_are_left_out_and_a_file_holds_the_text(tmp_path: Path) -> None:
    network("mistral3").save_pretrained(tmp_path)
    assert "images" in inspect_model(str(tmp_path), ReferenceOps()).lines()[0]
    metadata, tensors = gguf_network(open_checkpoint(tmp_path))
    assert metadata["general.architecture"] == "llama"
    assert len(tensors) == 3 + 9 * 2


def test_sizes_that_the_config_leaves_out_are_those_of_transformers() -> None:
    """It saves of the text's config what differs from the class's own."""
    for name in ("gemma3_text", "mistral"):
        own = transformers.AutoConfig.for_model(name).to_dict()
        usual = models.architectures()[name].usual
        assert usual == {key: own[key] for key in usual}
