from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from outpace import LanguageModel
from outpace.train.joint.settings import JointSettings
from outpace.train.joint.target import TrainableTarget
from outpace.train.joint.tuned import Tuned
from outpace.train.settings import TrainSettings
from outpace.train.text.corpus import Conversation
from outpace.train.trainer import Outcome, train
from tests.unit.train.conftest import FAST

# A tiny target has little to lose: a high rate moves it far in a few steps.
JOINT: dict[str, Any] = {"rank": 16, "alpha": 16.0, "rate": 1e-2}


def tuned_of(lm: LanguageModel, **changes: Any) -> Tuned:
    return Tuned(TrainableTarget(lm, torch.device("cpu"), name="Tiny"), JointSettings(**JOINT | changes), 0)


def trained_with(
    backbone: Tuned, text: list[Conversation], held_out: list[Conversation], folder: Path, steps: int = 80
) -> Outcome:
    settings = TrainSettings(steps=steps, evaluations=2, **FAST)
    return train("medusa", settings, text, held_out, backbone.target, folder, backbone=backbone)


@pytest.fixture(scope="session")
def joint(
    lm: LanguageModel,
    text: list[Conversation],
    held_out: list[Conversation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Outcome:
    """Heads and an adapter that have learned together."""
    return trained_with(tuned_of(lm), text, held_out, tmp_path_factory.mktemp("joint"))
