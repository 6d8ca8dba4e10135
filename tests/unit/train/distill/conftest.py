from __future__ import annotations

from pathlib import Path

import pytest

from outpace import LanguageModel
from outpace.models.checkpoint import open_checkpoint
from outpace.train.distill.shrink import with_layers
from outpace.train.networks.transformer import Dequantised, TransformerNetwork
from outpace.train.target import EngineTarget
from outpace.train.text.corpus import Conversation
from tests.training import tiny_lm, written_by

LAYERS = (0, 3)


@pytest.fixture(scope="session")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A tiny teacher of four layers."""
    return tiny_lm(tmp_path_factory.mktemp("teacher"), num_hidden_layers=4, spread=0.5)


@pytest.fixture(scope="session")
def folder(lm: LanguageModel) -> Path:
    return lm.path


@pytest.fixture(scope="session")
def target(lm: LanguageModel) -> EngineTarget:
    return EngineTarget(lm, "Tiny")


@pytest.fixture(scope="session")
def text(lm: LanguageModel) -> list[Conversation]:
    return written_by(lm, 160, seed=0, temperature=1.0)


@pytest.fixture(scope="session")
def held_out(lm: LanguageModel) -> list[Conversation]:
    return written_by(lm, 16, seed=1)


@pytest.fixture
def student(lm: LanguageModel) -> TransformerNetwork:
    """Two of the teacher's four layers, with numbers of its own."""
    return student_of(lm)


def student_of(lm: LanguageModel) -> TransformerNetwork:
    teacher = TransformerNetwork.of(lm.config, Dequantised(open_checkpoint(lm.path).tensors))
    part = with_layers(teacher, LAYERS)
    return TransformerNetwork.of(part.config, part.state_dict())
