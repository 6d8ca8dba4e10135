from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from outpace import LanguageModel
from outpace.train.drafting import Drafted, Drafting
from outpace.train.settings import TrainSettings
from outpace.train.target import EngineTarget, FrozenTarget
from outpace.train.text.corpus import Conversation
from outpace.train.trainer import Outcome, train
from tests.training import tiny_lm, written_by

# What a tiny drafter needs to learn in a few seconds: high rates, for there is little to spoil.
FAST = {
    "tokens_per_batch": 512,
    "matrix_rate": 2e-2,
    "vector_rate": 1e-2,
    "head_rate": 1e-2,
    "warmup_steps": 10,
    "head_rows": 320,
    "num_fixed": 240,
    "save_every_s": 1e9,
}


def train_drafter(
    kind: str,
    settings: TrainSettings,
    text: Sequence[Conversation],
    held_out: Sequence[Conversation],
    target: FrozenTarget,
    folder: Path,
    start: Path | None = None,
    **watched: Any,
) -> Outcome[Drafted]:
    return train(Drafting(kind, settings, text, held_out, target, start), folder, **watched)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return tiny_lm(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="session")
def folder(lm: LanguageModel) -> Path:
    """Where the tiny model lies."""
    return lm.path


@pytest.fixture(scope="session")
def target(lm: LanguageModel) -> EngineTarget:
    return EngineTarget(lm, "Tiny")


@pytest.fixture(scope="session")
def text(lm: LanguageModel) -> list[Conversation]:
    return written_by(lm, 256, seed=0, temperature=1.0)


@pytest.fixture(scope="session")
def held_out(lm: LanguageModel) -> list[Conversation]:
    return written_by(lm, 24, seed=1, temperature=1.0)


@pytest.fixture(scope="session")
def trained_of(
    target: EngineTarget,
    text: list[Conversation],
    held_out: list[Conversation],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Outcome[Drafted]]:
    """Drafters that have learned the tiny target's text, by kind; each is trained once."""

    @cache
    def of(kind: str) -> Outcome[Drafted]:
        settings = TrainSettings(steps=80, evaluations=2, **FAST)
        return train_drafter(kind, settings, text, held_out, target, tmp_path_factory.mktemp(kind))

    return of


@pytest.fixture(scope="session")
def trained(trained_of: Callable[[str], Outcome[Drafted]]) -> Outcome[Drafted]:
    """An eagle drafter."""
    return trained_of("eagle")
