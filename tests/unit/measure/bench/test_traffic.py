from __future__ import annotations

from pathlib import Path

import outpace
from outpace.measure.bench.traffic import read_bandwidth, weight_bytes
from outpace.ops.reference import ReferenceOps
from tests.decoding import tiny_ops
from tests.folder import make_folder


def test_bandwidth_is_measured_with_any_ops() -> None:
    assert read_bandwidth(ReferenceOps(threads=1), repeats=1) > 0.01


def test_an_embedding_that_is_only_looked_up_in_is_not_read_by_a_pass(tmp_path: Path) -> None:
    """Its 320 rows of 48 float32 numbers; tied to the output matrix, it is read."""
    untied = outpace.load(make_folder(tmp_path / "untied"), ops=tiny_ops())
    assert weight_bytes(untied) == untied.num_bytes - 4 * untied.config.vocab_size * 48
    tied = outpace.load(make_folder(tmp_path / "tied", tie_word_embeddings=True), ops=tiny_ops())
    assert weight_bytes(tied) == tied.num_bytes
