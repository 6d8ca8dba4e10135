from __future__ import annotations

import torch

from outpace.api import LanguageModel
from outpace.train.options import TrainOptions
from outpace.train.target import EngineTarget
from outpace.train.torch_target import TorchTarget
from outpace.train.training import settings_of, target_on


def test_a_number_of_steps_takes_the_place_of_the_time() -> None:
    timed = settings_of(TrainOptions(kind="eagle"), 90.0, on_cpu=True)
    assert (timed.steps, timed.budget_s) == (None, 90.0)
    counted = settings_of(TrainOptions(kind="eagle", steps=7), 90.0, on_cpu=True)
    assert (counted.steps, counted.budget_s) == (7, None)


def test_a_step_is_larger_where_there_is_an_accelerator_unless_its_size_is_given() -> None:
    options = TrainOptions(kind="eagle")
    small, large = (settings_of(options, 1.0, on_cpu=on_cpu).tokens_per_batch for on_cpu in (True, False))
    assert 4 * small < large
    assert settings_of(TrainOptions(kind="eagle", batch_tokens=77), 1.0, on_cpu=False).tokens_per_batch == 77


def test_a_learning_rate_moves_all_of_them() -> None:
    recipe = settings_of(TrainOptions(kind="eagle"), 1.0, on_cpu=True)
    doubled = settings_of(TrainOptions(kind="eagle", learning_rate=2 * recipe.matrix_rate), 1.0, on_cpu=True)
    assert (doubled.matrix_rate, doubled.vector_rate, doubled.head_rate) == (
        2 * recipe.matrix_rate,
        2 * recipe.vector_rate,
        2 * recipe.head_rate,
    )
    assert doubled.peak == 1.0


def test_the_target_is_the_engine_on_the_cpu_and_pytorch_elsewhere(lm: LanguageModel) -> None:
    assert isinstance(target_on(torch.device("cpu"), lm), EngineTarget)
    assert isinstance(target_on(torch.device("meta"), lm), TorchTarget)
