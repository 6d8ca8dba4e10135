from __future__ import annotations

from pathlib import Path

import pytest

from outpace.api import LanguageModel
from outpace.errors import UsageError
from outpace.train.options import TrainOptions
from outpace.train.run import Run


def test_a_drafter_that_an_earlier_version_trained_is_refused_with_the_cure(lm: LanguageModel, tmp_path: Path) -> None:
    own = Run(TrainOptions(kind="eagle"), tmp_path / "out", lm)
    own.ledger.finish("training", path="training/drafter.gguf", rows=[], score=1.5)
    with pytest.raises(UsageError, match="trained by an earlier version of Outpace: give another --out"):
        own.train([], [])
