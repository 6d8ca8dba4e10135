from __future__ import annotations

import pytest
import torch

from outpace.models.checkpoint import open_checkpoint
from outpace.train.adapt.passes import block_pass, clean_pass
from outpace.train.networks.transformer import Dequantised, TransformerNetwork
from tests.adapting import blocks_of, conversation
from tests.training import tiny_lm


@pytest.fixture(scope="module", params=["llama", "mistral", "qwen3"])
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TransformerNetwork:
    own = {"sliding_window": 6} if request.param == "mistral" else {}
    lm = tiny_lm(tmp_path_factory.mktemp("tiny"), request.param, **own)
    tensors = Dequantised(open_checkpoint(lm.path).tensors)
    return TransformerNetwork.of(lm.config, tensors).requires_grad_(False)


def test_the_clean_pass_is_the_networks_own(network: TransformerNetwork) -> None:
    tokens = torch.randint(0, 97, (2, 16), generator=torch.Generator().manual_seed(0))
    found = clean_pass(network, tokens).states
    assert torch.allclose(found, network(tokens)[network.last_tap], atol=1e-5)


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("is_causal", [False, True])
def test_every_block_is_what_the_network_makes_of_text_and_block_alone(
    network: TransformerNetwork, shift: int, is_causal: bool
) -> None:
    """The oracle: one plain pass a block, over the tokens before it and its rows, with an explicit mask."""
    size = 4
    some = [conversation(3, 18, 96), conversation(7, 16), conversation(1, 9, 96)]
    blocks = blocks_of(some, size, shift)
    guesses = torch.randint(0, 97, blocks.inputs.shape, generator=torch.Generator().manual_seed(1))
    embedded = network.model.embed_tokens(guesses)
    found = block_pass(network, blocks, embedded, clean_pass(network, blocks.tokens), is_causal=is_causal)
    for s in range(len(some)):
        for first in range(0, blocks.is_row.shape[1], size):
            if not blocks.is_row[s, first]:
                continue
            start = int(blocks.starts[s]) + first
            text = torch.cat([blocks.tokens[s, :start], guesses[s, first : first + size]])
            mask = torch.ones(start + size, start + size, dtype=torch.bool).tril()
            if not is_causal:
                mask[start:, start:] = True
            own = network(text[None], mask=mask)[network.last_tap][0, start:]
            assert torch.allclose(found[s, first : first + size], own, atol=1e-4)


def test_blocks_that_hold_the_text_causally_give_the_clean_states(network: TransformerNetwork) -> None:
    blocks = blocks_of([conversation(5, 21)])
    clean = clean_pass(network, blocks.tokens)
    found = block_pass(network, blocks, network.model.embed_tokens(blocks.inputs), clean, is_causal=True)
    assert torch.allclose(found[0], clean.states[0, 4:20], atol=1e-4)
