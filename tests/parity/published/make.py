"""Write tiny drafters with `speculators` and `dflash`, and what their networks make of hidden states: see README.md."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dflash.model import DFlashDraftModel
from speculators.config import SpeculatorsConfig, VerifierConfig
from speculators.models.eagle3 import Eagle3SpeculatorConfig
from speculators.models.eagle3.core import Eagle3DraftModel
from speculators.proposals.greedy import GreedyTokenProposalConfig
from transformers import LlamaConfig, Qwen3Config

VOCAB, WIDTH, TAPS, TOKENS = 31, 16, 3, 7
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
WINDOW = {"cls": Qwen3Config, "layer_types": ["sliding_attention"], "sliding_window": 3, "use_sliding_window": True}
EAGLE3: dict[str, dict[str, Any]] = {
    "plain": {},
    "residual_normed": {"norm_before_residual": True},
    "joint": {"norm_before_fc": True, "norm_output": True},
    "each": {"fc_norm": True, "norm_output": True, "norm_before_residual": True},
    "whole_head": {"draft_vocab_size": VOCAB},
    "qwen3": {"layer": {"cls": Qwen3Config}},
    "biases": {"layer": {"attention_bias": True}},
    "llama3": {"layer": {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 16}}},
    "window": {"layer": WINDOW},
}


def randomise(model: torch.nn.Module) -> None:
    """Give every weight a value that matters."""
    with torch.no_grad():
        for value in model.parameters():
            noise = torch.randn_like(value)
            value.copy_(1 + noise / 5 if value.ndim == 1 else noise * 1.5 / value.shape[1] ** 0.5)


def eagle3(folder: Path, layer: dict[str, Any] | None = None, draft_vocab_size: int = 12, **options: Any) -> None:
    """Write one EAGLE-3 drafter."""
    layer = dict(layer or {})
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 24}
    config = layer.pop("cls", LlamaConfig)(
        vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=1, max_position_embeddings=64, rms_norm_eps=1e-5,
        **sizes, **layer,
    )  # fmt: skip
    config._attn_implementation = "eager"
    model = Eagle3DraftModel(
        Eagle3SpeculatorConfig(
            transformer_layer_config=config,
            draft_vocab_size=draft_vocab_size,
            eagle_aux_hidden_state_layer_ids=[1, 2, 3],
            speculators_config=SpeculatorsConfig(
                algorithm="eagle3",
                proposal_methods=[GreedyTokenProposalConfig(speculative_tokens=3)],
                default_proposal_method="greedy",
                verifier=VerifierConfig(name_or_path=None, architectures=["LlamaForCausalLM"]),
            ),
            **options,
        )
    )
    randomise(model)
    if draft_vocab_size < VOCAB:
        tokens = torch.randperm(VOCAB)[:draft_vocab_size].sort().values
        model.d2t.copy_(tokens - torch.arange(draft_vocab_size))
        model.t2d[tokens] = True
    model.eval().save_pretrained(folder)
    (folder / "config.py").unlink()  # code of theirs, which nobody reads
    logits: list[np.ndarray] = []
    head = model.lm_head.forward
    model.lm_head.forward = lambda x: (logits.append(head(x)[0].numpy()), head(x))[1]
    tokens, states = torch.randint(0, VOCAB, (1, TOKENS)), torch.randn(1, TOKENS, TAPS * WIDTH)
    with torch.no_grad():
        model(states, tokens, torch.zeros(1, TOKENS, dtype=torch.long), ttt_steps=3)
    levels = {f"logits{i}": level for i, level in enumerate(logits)}
    np.savez(folder / "expected.npz", tokens=tokens[0].numpy(), states=states[0].numpy(), **levels)


def dflash(folder: Path) -> None:
    """Write one DFlash drafter of two layers; logits of every mask behind a random context."""
    config = Qwen3Config(
        vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=2, max_position_embeddings=64, rms_norm_eps=1e-5,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=24, num_target_layers=4,
        rope_theta=1000.0, block_size=5, dflash_config={"mask_token_id": 29, "target_layer_ids": [0, 1, 2]},
    )  # fmt: skip
    model = DFlashDraftModel(config)
    randomise(model)
    model.eval().save_pretrained(folder)
    embedding, output = torch.randn(VOCAB, WIDTH), torch.randn(VOCAB, WIDTH)
    states, block = torch.randn(1, TOKENS, TAPS * WIDTH), torch.tensor([[3, 29, 29, 29, 29]])
    with torch.no_grad():
        hidden = model(
            position_ids=torch.arange(TOKENS + 5)[None], noise_embedding=embedding[block], target_hidden=states
        )
    given = {"states": states[0], "anchor": block[0, :1], "embedding": embedding, "output": output}
    np.savez(
        folder / "expected.npz",
        logits=(hidden[0, 1:] @ output.T).numpy(),
        **{name: value.numpy() for name, value in given.items()},
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    dflash(Path(sys.argv[1]) / "dflash" / "plain")
    for name, options in EAGLE3.items():
        eagle3(Path(sys.argv[1]) / "speculators" / name, **options)
