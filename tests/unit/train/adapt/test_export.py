from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import outpace
from outpace import LanguageModel
from outpace.models.checkpoint import open_checkpoint
from outpace.train.adapt.export import ARCHITECTURE, export_adapter, read_result, write_model, write_result
from outpace.train.adapt.measure import unmask
from outpace.train.target import identity_of
from outpace.weights.gguf import read_gguf
from tests.adapting import blocks_of, conversation, learner_of, settings_of, shaken


@pytest.mark.parametrize("kind", ["diffusion", "jacobi"])
def test_a_file_says_for_whom_and_how(lm: LanguageModel, tmp_path: Path, kind: str) -> None:
    settings = settings_of(kind, alpha=8.0)
    path = tmp_path / "adapter.gguf"
    learner = shaken(learner_of(lm, settings))
    export_adapter(learner, settings, identity_of(lm, "Tiny"), path)
    file = read_gguf(path)
    assert file.metadata["general.architecture"] == ARCHITECTURE
    entries = {k.removeprefix("adapter."): v for k, v in file.metadata.items() if k.startswith("adapter.")}
    common = {
        "kind": kind,
        "rank": 16,
        "scale": 0.5,
        "context": "base" if kind == "diffusion" else "adapted",
        "target.name": "Tiny",
        "target.fingerprint": lm.loaded.fingerprint.hex(),
        "target.vocabulary": lm.tokenizer.fingerprint,
        "target.model_type": "llama",
        "target.vocab_size": lm.config.vocab_size,
        "target.width": lm.config.width,
        "target.num_layers": lm.config.num_layers,
    }
    own = {"block": 4, "shift": 1, "mask_token": lm.config.vocab_size} if kind == "diffusion" else {}
    assert entries == common | own
    assert set(file.tensors) == set(learner.parameters)
    assert file.tensors["model.layers.0.self_attn.q_proj.lora_b"].shape == (lm.config.width, 16)
    assert ("mask_embedding" in file.tensors) == (kind == "diffusion")


@pytest.mark.parametrize(("rank", "stored"), [(32, "Q8_0"), (16, "F16")])
def test_numbers_come_back_as_they_were_rounded(lm: LanguageModel, tmp_path: Path, rank: int, stored: str) -> None:
    settings = settings_of(rank=rank)
    path = tmp_path / "adapter.gguf"
    learner = shaken(learner_of(lm, settings))
    export_adapter(learner, settings, identity_of(lm), path)
    assert read_gguf(path).tensors["model.layers.1.mlp.up_proj.lora_b"].format == stored
    found = read_result(path)
    for name, own in learner.parameters.items():
        assert found[name].shape == own.shape
        assert torch.allclose(found[name], own.detach(), atol=0.01 * float(own.detach().abs().max()))
    assert torch.equal(found["mask_embedding"], learner.parameters["mask_embedding"].detach())


@pytest.mark.parametrize("shift", [0, 1])
def test_a_model_whose_weights_have_all_learned_is_a_folder_that_decodes_blocks(
    lm: LanguageModel, tmp_path: Path, shift: int
) -> None:
    """What the engine decodes with the folder is what is measured in PyTorch, as far as float16 has the numbers."""
    settings = settings_of(weights="full", shift=shift)
    learner = shaken(learner_of(lm, settings, mask_token=96), spread=0.02)
    write_result(learner, settings, identity_of(lm), tmp_path / "weights.pt")
    learner.load(read_result(tmp_path / "weights.pt"))
    write_model(tmp_path / "model", open_checkpoint(lm.path), tmp_path / "weights.pt", settings, 96)
    stated = json.loads((tmp_path / "model" / "config.json").read_text())["outpace_diffusion"]
    assert stated == {"mask_token_id": 96, "block": 4, "shift": shift}
    own = outpace.load(tmp_path / "model", ops="reference", kv="f32", threads=1)
    for seed in range(3):
        text = conversation(4, 12, seed=seed)
        blocks = blocks_of([text], shift=shift)
        found, passes = unmask(learner, blocks, learner.clean(blocks.tokens), 0.9)
        result = own.generate(
            text.tokens[:4].tolist(), strategy="block_diffusion", threshold=0.9, max_new_tokens=4, ignore_eos=True
        )
        assert result.tokens == blocks.by_block(found)[0, 0].tolist()
        assert result.stats.passes == int(passes[0, 0])
