from __future__ import annotations

import pytest
import torch
from torch import nn

from outpace import LanguageModel
from outpace.models.checkpoint import open_checkpoint
from outpace.train.networks.lora import MATRICES, Adapter, LoraLinear
from outpace.train.networks.transformer import Dequantised, TransformerNetwork


@pytest.fixture
def network(lm: LanguageModel) -> TransformerNetwork:
    return TransformerNetwork.of(lm.config, Dequantised(open_checkpoint(lm.path).tensors)).requires_grad_(False)


def adapter_of(network: TransformerNetwork, rank: int = 4, alpha: float = 8.0) -> Adapter:
    return Adapter(network.model.layers, rank, alpha, torch.Generator().manual_seed(0))


def moved(adapter: Adapter) -> Adapter:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for own in adapter.tensors().values():
            own.copy_(torch.randn(own.shape, generator=generator) * 0.1)
    return adapter


TOKENS = torch.tensor([[5, 9, 30, 2, 77, 41]])


def test_an_untrained_adapter_changes_no_bit(network: TransformerNetwork) -> None:
    before = network(TOKENS)[network.last_tap]
    adapter_of(network)
    assert torch.equal(network(TOKENS)[network.last_tap], before)


def test_switched_off_the_network_is_the_one_that_it_was_made_of(network: TransformerNetwork) -> None:
    before = network(TOKENS)[network.last_tap]
    adapter = moved(adapter_of(network))
    assert not torch.allclose(network(TOKENS)[network.last_tap], before, atol=0.1)
    with adapter.off():
        assert torch.equal(network(TOKENS)[network.last_tap], before)
    assert not torch.equal(network(TOKENS)[network.last_tap], before)


def test_merged_into_the_weights_it_gives_what_it_gives_beside_them(
    network: TransformerNetwork, lm: LanguageModel
) -> None:
    adapter = moved(adapter_of(network))
    apart = network(TOKENS)[network.last_tap]
    tensors = dict(Dequantised(open_checkpoint(lm.path).tensors))
    tensors |= {f"{name}.weight": part.merged for name, part in adapter}
    merged = TransformerNetwork.of(lm.config, tensors)(TOKENS)[network.last_tap]
    assert torch.allclose(apart, merged, atol=1e-4)


def test_it_is_on_again_after_an_error(network: TransformerNetwork) -> None:
    adapter = adapter_of(network)
    with pytest.raises(ZeroDivisionError), adapter.off():
        raise ZeroDivisionError
    assert all(part.is_on for _, part in adapter)


def test_every_matrix_of_every_layer_has_one_and_only_it_learns(network: TransformerNetwork) -> None:
    adapter = adapter_of(network)
    layers = network.config.num_layers
    expected = {f"model.layers.{i}.{name}.lora_{x}" for i in range(layers) for name in MATRICES for x in "ab"}
    assert adapter.tensors().keys() == expected
    network(TOKENS)[network.last_tap].square().sum().backward()
    learning = {id(own) for own in network.parameters() if own.grad is not None}
    assert learning == {id(own) for own in adapter.tensors().values()}


def test_gradients_are_those_of_finite_differences() -> None:
    linear = nn.Linear(5, 3).double()
    part = LoraLinear(linear, 2, 0.7, torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        part.lora_b.copy_(torch.randn(3, 2, dtype=torch.float64))
    x = torch.randn(4, 5, dtype=torch.float64)

    def of(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(part, {"lora_a": a, "lora_b": b}, (x,))

    assert torch.autograd.gradcheck(of, (part.lora_a, part.lora_b))
    expected = x @ (linear.weight + 0.7 * part.lora_b @ part.lora_a).T + linear.bias
    assert torch.allclose(part(x), expected)
