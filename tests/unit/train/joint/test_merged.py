from __future__ import annotations

from pathlib import Path

import pytest
import torch

import outpace
from outpace import LanguageModel
from outpace.models.checkpoint import open_checkpoint
from outpace.ops.formats import dequantise
from outpace.train.joint.files import beside
from outpace.train.joint.merged import write_merged
from outpace.train.target import EngineTarget
from outpace.train.text.corpus import Conversation
from outpace.train.trainer import Outcome
from tests.unit.train.joint.conftest import tuned_of


def test_a_merged_model_computes_what_the_model_with_the_adapter_computes(
    lm: LanguageModel, joint: Outcome, held_out: list[Conversation], tmp_path: Path
) -> None:
    """On the reference ops, up to float16 weights; the original is ten times as far away."""
    write_merged(tmp_path / "merged", open_checkpoint(lm.path), beside(joint.path))
    last, tokens = lm.config.num_layers + 1, [held_out[0].tokens]

    def states(path: Path, adapter: Path | None = None) -> torch.Tensor:
        own = outpace.load(path, threads=1, ops="reference", kv="f32", adapter=adapter)
        return EngineTarget(own).states(tokens, (last,))[last][0]

    expected = states(lm.path, beside(joint.path))
    distance = (states(tmp_path / "merged") - expected).norm() / expected.norm()
    original = (states(lm.path) - expected).norm() / expected.norm()
    assert float(distance) < 5e-3
    assert float(original) > 10 * float(distance)


def test_it_has_the_originals_vocabulary(lm: LanguageModel, joint: Outcome, tmp_path: Path) -> None:
    write_merged(tmp_path / "merged", open_checkpoint(lm.path), beside(joint.path))
    merged = outpace.load(tmp_path / "merged", threads=1, drafter=joint.path)
    assert merged.tokenizer.fingerprint == lm.tokenizer.fingerprint
    assert merged.generate("the cat", strategy="medusa", max_new_tokens=8).lossless


def test_an_adapter_of_nothing_changes_nothing(lm: LanguageModel, tmp_path: Path) -> None:
    own = tuned_of(lm)
    own.write(tmp_path / "drafter.gguf", "Q8_0")
    write_merged(tmp_path / "merged", open_checkpoint(lm.path), beside(tmp_path / "drafter.gguf"))
    before, after = (open_checkpoint(path).tensors for path in (lm.path, tmp_path / "merged"))
    for name in before:
        assert dequantise(after[name]) == pytest.approx(dequantise(before[name]), abs=2e-3, rel=1e-3)
