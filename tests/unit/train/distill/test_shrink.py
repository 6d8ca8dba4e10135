from __future__ import annotations

import numpy as np
import pytest
import torch

from outpace.errors import UsageError
from outpace.train.distill.shrink import (
    busiest_neurons,
    layer_importance,
    log_perplexity,
    most_important,
    narrowed,
    with_layers,
)
from outpace.train.networks.transformer import TransformerNetwork
from tests.distilling import network

TEXT = [torch.from_numpy(np.random.default_rng(i).integers(0, 97, (2, 20))) for i in range(2)]


def test_some_layers_are_a_network_of_the_same_numbers() -> None:
    teacher = network(num_hidden_layers=4)
    student = with_layers(teacher, (0, 2))
    assert student.config.num_layers == 2
    assert student.model.layers[1].mlp.up_proj.weight is teacher.model.layers[2].mlp.up_proj.weight
    assert torch.equal(with_layers(teacher, range(4))(TEXT[0])[5], teacher(TEXT[0])[5])
    copy = TransformerNetwork.of(student.config, student.state_dict())
    assert torch.equal(copy(TEXT[0])[3], student(TEXT[0])[3])


def test_layers_keep_their_windows() -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    teacher = network("qwen2", num_hidden_layers=4, layer_types=kinds, use_sliding_window=True, sliding_window=24)
    assert with_layers(teacher, (0, 3)).config.windows == (None, 24)


@pytest.mark.parametrize("layers", [(), (1, 0), (0, 0), (0, 4), (-1, 2)])
def test_layers_that_are_none_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="different ones of 0 to 3, in ascending order"):
        with_layers(network(num_hidden_layers=4), layers)


@pytest.mark.parametrize("measure", ["cosine", "perplexity"])
def test_a_layer_that_adds_nothing_is_the_least_important_one(measure: str) -> None:
    teacher = network(num_hidden_layers=4)
    teacher.model.layers[2].self_attn.o_proj.weight.zero_()
    teacher.model.layers[2].mlp.down_proj.weight.zero_()
    importance = layer_importance(teacher, TEXT, measure)
    assert abs(importance[2]) < 1e-6
    assert np.abs(importance[[0, 1, 3]]).min() > 1e-3


def test_the_importance_of_a_layer_is_what_the_text_costs_without_it() -> None:
    teacher = network(num_hidden_layers=3)
    found = layer_importance(teacher, TEXT, "perplexity")
    expected = log_perplexity(with_layers(teacher, (0, 2)), TEXT) - log_perplexity(teacher, TEXT)
    assert found[1] == pytest.approx(expected)


def test_log_perplexity_is_the_mean_over_all_next_tokens() -> None:
    teacher = network()
    losses = []
    for tokens in TEXT:
        logits = teacher.logits(teacher(tokens)[3]).log_softmax(-1)
        losses.append(-logits[:, :-1].gather(-1, tokens[:, 1:, None]).flatten())
    assert log_perplexity(teacher, TEXT) == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)


def test_the_ends_of_a_network_are_always_kept() -> None:
    importance = np.array([0.0, 3.0, 1.0, 2.0, 0.0])
    assert most_important(importance, 4) == (0, 1, 3, 4)
    assert most_important(importance, 2) == (0, 4)
    assert most_important(importance, 1) == (0,)
    for count in (0, 6):
        with pytest.raises(UsageError, match=f"1 to 5 layers, not {count}"):
            most_important(importance, count)


@pytest.mark.parametrize("mlp_bias", [False, True])
def test_neurons_that_say_nothing_are_left_out_first(mlp_bias: bool) -> None:
    """Without them the network is the same; without others it is not."""
    teacher = network(mlp_bias=mlp_bias)
    silent = torch.arange(0, 80, 2)
    for layer in teacher.model.layers:
        layer.mlp.down_proj.weight[:, silent] = 0
    neurons = busiest_neurons(teacher, TEXT, 40)
    assert all(torch.equal(own, torch.arange(1, 80, 2)) for own in neurons)
    student = narrowed(teacher, neurons)
    assert student.config.feed_forward_width == 40
    assert student.model.layers[0].mlp.gate_proj.weight.shape == (40, 48)
    assert torch.allclose(student(TEXT[0])[3], teacher(TEXT[0])[3], atol=1e-5)
    fewer = narrowed(teacher, busiest_neurons(teacher, TEXT, 30))
    assert not torch.allclose(fewer(TEXT[0])[3], teacher(TEXT[0])[3], atol=1e-2)
    with pytest.raises(UsageError, match="1 to the teacher's 80 neurons, not 81"):
        busiest_neurons(teacher, TEXT, 81)


def test_looking_for_neurons_leaves_no_trace() -> None:
    teacher = network()
    before = teacher(TEXT[0])[3]
    busiest_neurons(teacher, TEXT, 10)
    assert torch.equal(teacher(TEXT[0])[3], before)
    assert not teacher.model.layers[0].mlp.down_proj._forward_pre_hooks
