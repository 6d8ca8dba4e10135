"""Text that a tiny model wrote, and that model frozen: what the tests of training learn from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor

import outpace
from outpace import LanguageModel
from outpace.train.target import EngineTarget, FrozenTarget
from outpace.train.text.corpus import Conversation
from outpace.types import KVFormat
from tests.folder import make_folder
from tests.tiny import tiny_values


def tiny_lm(
    folder: Path,
    model_type: str = "llama",
    *,
    ops: str | None = None,
    kv: KVFormat = "bf16",
    spread: float = 0.3,
    sharpness: float = 8.0,
    **overrides: Any,
) -> LanguageModel:
    """Return a tiny model that was written into a folder.

    spread: of its layers; small, so that the next token depends on the last one most of all, and can be learned.
    sharpness: of its distributions.
    """
    path = make_folder(folder / model_type, model_type, **overrides)
    config = json.loads((path / "config.json").read_text())
    values = tiny_values(config, spread=spread)
    values["lm_head.weight"] = values["lm_head.weight"] * np.float32(sharpness / spread)
    save_file(values, path / "model.safetensors")
    return outpace.load(path, ops=ops, kv=kv, threads=1)


def written_by(
    lm: LanguageModel, count: int, length: int = 40, seed: int = 0, temperature: float = 0.0
) -> list[Conversation]:
    """Return conversations that begin with a few random tokens and go on as the model does."""
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(0, lm.config.vocab_size, rng.integers(2, 7)).tolist() for _ in range(count)]
    found = []
    for first in range(0, count, 16):
        some, noise = prompts[first : first + 16], 1000 * seed + first + 1
        results = lm.generate(
            some, max_new_tokens=length, ignore_eos=True, strategy="none", temperature=temperature, seed=noise
        )
        for prompt, result in zip(some, results, strict=True):
            tokens = np.array([*prompt, *result.tokens], np.int32)
            own = Conversation(tokens, len(prompt), temperature > 0, "tiny", temperature, seed=noise)
            found.append(own)
    return found


class Confused:
    """A target whose final states stand in random order: its labels belong to other positions."""

    def __init__(self, target: EngineTarget) -> None:
        self._target, self._rng = target, np.random.default_rng(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def padded(self, tokens: Tensor, lengths: Sequence[int], taps: Sequence[int]) -> dict[int, Tensor]:
        found = self._target.padded(tokens, lengths, taps)
        for x, length in zip(found[self._target.config.num_layers], lengths, strict=True):
            x[:length] = x[torch.from_numpy(self._rng.permutation(length))]
        return found


def assert_same_states(lm: LanguageModel, target: FrozenTarget) -> None:
    """Hold a target's hidden states, at every tap, and its identity against the engine's (float32 on both sides)."""
    engine, sequences = EngineTarget(lm), [own.tokens for own in written_by(lm, 4, 40)]
    taps = tuple(range(lm.config.num_layers + 2))
    expected, found = engine.states(sequences, taps), target.states(sequences, taps)
    for tap in taps:
        for x, y in zip(expected[tap], found[tap], strict=True):
            assert torch.allclose(x, y, atol=2e-4, rtol=1e-3), tap
    assert engine.identity == target.identity
