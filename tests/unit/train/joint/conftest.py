from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

from outpace import LanguageModel
from outpace.train.drafting import Drafted
from outpace.train.joint.settings import JointSettings
from outpace.train.joint.target import TrainableTarget
from outpace.train.joint.tuned import TunedDrafting
from outpace.train.settings import TrainSettings
from outpace.train.text.corpus import Conversation
from outpace.train.trainer import Outcome, train
from tests.unit.train.conftest import FAST

# A tiny target has little to lose: a high rate moves it far in a few steps.
JOINT: dict[str, Any] = {"rank": 16, "alpha": 16.0, "rate": 1e-2}


SOME = [Conversation(np.arange(9, dtype=np.int32), 2, False, "x")]


def tuned_of(
    lm: LanguageModel,
    text: Sequence[Conversation] = SOME,
    held_out: Sequence[Conversation] = SOME,
    start: Path | None = None,
    settings: Mapping[str, Any] = MappingProxyType({"steps": 1}),
    **changes: Any,
) -> TunedDrafting:
    """Return heads that learn with a tiny target. changes: of how that is tuned."""
    target = TrainableTarget(lm, torch.device("cpu"), name="Tiny")
    return TunedDrafting(
        JointSettings(**JOINT | changes), TrainSettings(**FAST | settings), text, held_out, target, start
    )


def trained_with(
    lm: LanguageModel,
    text: Sequence[Conversation],
    held_out: Sequence[Conversation],
    folder: Path,
    steps: int = 80,
    **changes: Any,
) -> Outcome[Drafted]:
    return train(tuned_of(lm, text, held_out, settings={"steps": steps, "evaluations": 2}, **changes), folder)


@pytest.fixture(scope="session")
def joint(
    lm: LanguageModel,
    text: list[Conversation],
    held_out: list[Conversation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Outcome[Drafted]:
    """Heads and an adapter that have learned together."""
    return trained_with(lm, text, held_out, tmp_path_factory.mktemp("joint"))
