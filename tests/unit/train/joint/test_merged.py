from __future__ import annotations

from pathlib import Path

import pytest
import torch

import outpace
from outpace import LanguageModel
from outpace.api.inspection import inspect_drafter
from outpace.models.checkpoint import open_checkpoint
from outpace.ops.formats import dequantise
from outpace.train.drafting import Drafted
from outpace.train.joint.files import beside
from outpace.train.joint.merged import write_merged
from outpace.train.target import EngineTarget
from outpace.train.text.corpus import Conversation
from outpace.train.trainer import Outcome
from outpace.weights.adapter import open_adapter
from tests.unit.train.joint.conftest import tuned_of


def test_a_merged_model_computes_what_the_model_with_the_adapter_computes(
    lm: LanguageModel, joint: Outcome[Drafted], held_out: list[Conversation], tmp_path: Path
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


def test_it_has_the_originals_vocabulary(lm: LanguageModel, joint: Outcome[Drafted], tmp_path: Path) -> None:
    write_merged(tmp_path / "merged", open_checkpoint(lm.path), beside(joint.path))
    merged = outpace.load(tmp_path / "merged", threads=1, drafter=joint.path)
    assert merged.tokenizer.fingerprint == lm.tokenizer.fingerprint
    assert merged.generate("the cat", strategy="medusa", max_new_tokens=8).lossless


def test_heads_without_the_adapter_that_they_learned_with_are_warned_of(
    lm: LanguageModel, joint: Outcome[Drafted], tmp_path: Path
) -> None:
    """By content: with the adapter, and with the merged folder, nobody is warned."""
    merged, adapter = tmp_path / "merged", beside(joint.path)
    write_merged(merged, open_checkpoint(lm.path), adapter)
    outpace.load(lm.path, threads=1, drafter=joint.path, adapter=adapter).close()
    outpace.load(merged, threads=1, drafter=joint.path).close()
    assert inspect_drafter(str(joint.path), str(merged)).is_tuned is True
    with pytest.warns(UserWarning, match=r"trained together with an adapter.*has no adapter: no token changes"):
        alone = outpace.load(lm.path, threads=1, drafter=joint.path)
    assert alone.generate("the cat", strategy="medusa", max_new_tokens=8).lossless
    tuned_of(lm).write_adapter(tmp_path / "other.gguf")
    with pytest.warns(UserWarning, match="has another adapter"):
        outpace.load(lm.path, threads=1, drafter=joint.path, adapter=beside(tmp_path / "other.gguf"))
    assert inspect_drafter(str(joint.path), str(lm.path)).is_tuned is False
    found = inspect_drafter(str(joint.path))
    assert (found.tuned_by, found.is_tuned) == (open_adapter(adapter).fingerprint.hex(), None)


def test_an_adapter_of_nothing_changes_nothing(lm: LanguageModel, tmp_path: Path) -> None:
    own = tuned_of(lm)
    own.write_adapter(tmp_path / "drafter.gguf")
    write_merged(tmp_path / "merged", open_checkpoint(lm.path), beside(tmp_path / "drafter.gguf"))
    before, after = (open_checkpoint(path).tensors for path in (lm.path, tmp_path / "merged"))
    for name in before:
        assert dequantise(after[name]) == pytest.approx(dequantise(before[name]), abs=2e-3, rel=1e-3)
